"""Grading: a model labels what agents said. No outcome depends on a label."""
