"""The command line, with one module for each command or group of related commands.

These modules parse options and print results, and leave everything else to the rest of the lab.
"""
