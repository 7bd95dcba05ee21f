"""Stored runs: records, the SQLite file that holds them, and summaries of them."""
