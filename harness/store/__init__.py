"""Stores runs and their trials in an SQLite database."""
