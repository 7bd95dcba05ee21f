"""Published figures, and (with the statistics extra, to come) what is computed from runs and compared with them."""
