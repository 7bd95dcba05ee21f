"""Agents that play trials: live models, scripted agents, replays and programs supplied by the user."""
