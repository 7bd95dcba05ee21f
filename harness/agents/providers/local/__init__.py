"""Models run on this machine from a file of weights."""
