"""Agents: whoever makes the tool calls of a trial, behind one interface."""
