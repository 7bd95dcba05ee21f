"""Observation from outside the container: snapshots of files, file events, and who ran what."""
