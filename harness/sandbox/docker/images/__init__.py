"""Builds and inspects images, which are the base image, the sandbox images built on it, and users' own images."""
