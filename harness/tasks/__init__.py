"""Tasks, kill switches and conditions: what the agent is asked to do, and the lab's side of it."""
