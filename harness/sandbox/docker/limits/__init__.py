"""Limits: container starts at a time, disk, and CPU time that a container didn't get."""
