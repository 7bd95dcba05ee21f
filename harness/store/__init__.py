"""Stored runs: their records, the SQLite database that holds the records, and summaries of a run."""
