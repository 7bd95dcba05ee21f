"""The session of one trial, which handles the agent's tool calls, records task events and watches protected files."""
