"""Observes a container from outside: reads its files, and records file events and accesses to watched files."""
