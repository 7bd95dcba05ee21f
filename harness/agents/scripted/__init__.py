"""Agents that need no live model, i.e. playbooks, replays and calibration agents."""
