"""Limits container starts and disk use, and detects containers that the host starves of CPU."""
