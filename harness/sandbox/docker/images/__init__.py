"""Builds and inspects the base image, the sandbox images built on it, and users' own images."""
