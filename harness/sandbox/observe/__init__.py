"""Observes a container from outside: snapshots of files, file events, and accesses to watched files."""
