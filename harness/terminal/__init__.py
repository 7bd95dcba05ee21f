"""Terminal output: progress, tables, and single trials as timelines. Control characters in shown text are escaped."""
