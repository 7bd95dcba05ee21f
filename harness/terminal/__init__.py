"""Terminal output: progress, tables, one trial as a timeline. Everything shown is escaped."""
