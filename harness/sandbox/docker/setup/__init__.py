"""Prepares a host for trials: installs a Docker engine and a C compiler, and builds the base image."""
