"""The session of one trial: handles its tool calls, records the task events and watches the protected files."""
