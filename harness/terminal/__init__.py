"""Prints progress, tables and trial timelines in the terminal. Control characters in the printed text are escaped."""
