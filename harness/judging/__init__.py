"""Judges trials with pure functions that turn recorded evidence into a verdict. Imports no other part of the lab."""
