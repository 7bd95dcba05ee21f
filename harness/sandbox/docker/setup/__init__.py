"""Setting up a machine: an engine, the base image, a compiler."""
