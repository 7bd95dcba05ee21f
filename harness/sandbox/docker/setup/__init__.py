"""Sets up a machine for trials: a Docker engine, the base image and a compiler."""
