"""One trial's session: tool calls come in, task events go out, and the watched files are looked at in between."""
