"""Compares rates measured in stored runs with published rates, and writes a report on the comparison."""
