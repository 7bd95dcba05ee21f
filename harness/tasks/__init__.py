"""Tasks, kill switches and conditions: what the agent is asked to do, and how the lab answers its task program."""
