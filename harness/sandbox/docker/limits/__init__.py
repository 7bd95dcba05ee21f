"""Limits concurrent container starts, limits disk use, and detects CPU starvation of containers."""
