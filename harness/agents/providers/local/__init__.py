"""Runs models on the local computer from GGUF files, which contain model weights."""
