"""Tasks, kill switches and conditions: what the agent is asked to do, and how its container is shut down."""
