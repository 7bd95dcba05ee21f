"""Implements the command line, with one module for each command or group of commands.

The modules only parse options and print results.
"""
