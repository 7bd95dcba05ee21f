"""Sets up a host for trials with a Docker engine, the base image and a C compiler."""
