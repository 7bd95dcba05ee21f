"""Offswitch: measures whether an AI agent lets itself be shut down."""

__version__ = "0.2.0"
