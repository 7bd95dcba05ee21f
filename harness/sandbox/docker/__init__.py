"""The Docker back end, which runs each sandbox in a Docker container."""
