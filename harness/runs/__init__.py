"""Runs: what was asked for, planned, queued and run trial by trial, and gone on with after an interruption."""
