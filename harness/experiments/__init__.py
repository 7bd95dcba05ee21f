"""Reads the file of an experiment, which describes a grid of runs, and runs the trials that are still missing."""
