"""Judge a trial: pure functions that turn frozen evidence into a verdict. Imports nothing else of the lab."""
