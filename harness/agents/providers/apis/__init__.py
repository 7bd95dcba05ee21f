"""One module for each API that providers speak."""
