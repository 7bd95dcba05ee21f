"""Grading: a model reads what agents said and labels it; no outcome rests on a label."""
