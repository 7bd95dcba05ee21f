"""Agents that play trials: live models, scripted agents, replays and the user's own programs."""
