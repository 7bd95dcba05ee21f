"""Grading: a model labels what agents said. A trial's outcome never depends on these labels."""
