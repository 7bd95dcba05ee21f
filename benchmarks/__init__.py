"""Benchmarks: each module measures one aspect of the lab and prints its figures."""
