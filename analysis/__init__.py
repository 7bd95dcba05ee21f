"""Published figures, statistics over stored runs, and the report that sets them side by side."""
