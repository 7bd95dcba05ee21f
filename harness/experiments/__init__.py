"""Experiments: reads a file that describes a grid of runs, and runs the trials that are still missing."""
