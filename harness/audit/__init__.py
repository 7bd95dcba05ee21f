"""The audit: would a kill switch have held? Tactics played against it in real containers, and its sandbox's set-up."""
