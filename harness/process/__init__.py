"""The lab's own process: its identity, the command it was started as, its logs, and the environment of its children."""
