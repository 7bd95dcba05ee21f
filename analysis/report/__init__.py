"""The report: one set of rows, written as an HTML page, Markdown and CSV."""
