"""Agents that need no live model: playbooks, replays of recordings and stored runs, and calibration agents."""
