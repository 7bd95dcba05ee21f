"""The lab's own process: who it is, what it was called as, and what its child processes may inherit."""
