"""The command line: one module for each command; options in, output out, no logic."""
