"""Observation from outside the container: snapshots of files, file events, and accesses to watched files."""
