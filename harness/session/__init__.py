"""Handles the tool calls of a trial, records task events, and watches protected files."""
