"""Defines the agent's tasks, the kill switches, and the conditions, i.e. the instructions about shutdown."""
