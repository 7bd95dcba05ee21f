"""Stores runs in an SQLite database: what each run was asked to do, the records of its trials, and summaries."""
