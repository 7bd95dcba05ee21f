"""Compares stored runs with published figures: the figures, the statistics and the report."""
