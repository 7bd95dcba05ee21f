"""Reads experiment files and runs the missing trials of experiments. An experiment is a grid of runs."""
