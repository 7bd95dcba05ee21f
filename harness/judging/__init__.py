"""Pure functions that compute the verdict on a trial from recorded evidence. They import no other part of the lab."""
