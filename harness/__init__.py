"""Offswitch measures whether an AI agent allows itself to be shut down."""

__version__ = "0.2.0"
