"""Sandboxes in Docker containers: connecting to an engine, building images, running containers."""
