"""Runs sandboxes in Docker containers, which includes connecting to an engine and building images."""
