"""Experiments: reads a file that describes a grid of runs, and runs what is missing of it."""
