"""Writes a report on stored runs as an HTML page, as Markdown and as CSV, all from the same data."""
