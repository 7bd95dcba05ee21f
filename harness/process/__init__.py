"""The lab's own process: its identity, the command that started it, its logs, and its children's environment."""
