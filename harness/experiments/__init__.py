"""Experiments: a grid of runs described by a file."""
