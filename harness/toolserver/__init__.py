"""The tool server, through which agents access their containers."""
