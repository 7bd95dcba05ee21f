"""The kinds of players that ship with the lab, one module each. Every module here defines ``KIND``, a PlayerKind."""
