"""Runs models on this machine from a GGUF file of model weights."""
