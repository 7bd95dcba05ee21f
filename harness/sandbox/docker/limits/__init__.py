"""Limits: concurrent container starts, disk quota, and detection of CPU starvation."""
