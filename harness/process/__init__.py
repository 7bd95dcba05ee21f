"""Provides the lab process's identity, start command and logging, and the environment for its child processes."""
