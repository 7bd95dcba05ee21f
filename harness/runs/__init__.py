"""Checks requests for runs, runs the trials of each run, and resumes interrupted runs."""
