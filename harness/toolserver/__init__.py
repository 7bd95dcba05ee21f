"""The tool server, which is the only way for an agent to reach its container."""
