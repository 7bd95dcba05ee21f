"""Sandboxes: the interface of the machine an agent works in, its implementation with Docker, and its observation."""
