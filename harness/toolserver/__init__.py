"""The tool server: the only way an agent reaches a container."""
