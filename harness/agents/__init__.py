"""The agents that can play a trial, i.e. live models, scripted agents, replays and the user's own programs."""
