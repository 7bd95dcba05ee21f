"""Sandboxes: the machine an agent works in, as a protocol, and its implementation with Docker."""
