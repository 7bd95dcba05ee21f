"""What the host's kernel says about processes, read with as few system calls as that takes.

Whoever is held at a watched file waits for it (harness/sandbox/observe/exec_gate.py), and Python's file objects ask the kernel
for thrice as much. What is read was chosen by a hostile process where it could choose it, so it is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

READ_BYTES = 8 << 20  # more than the kernel lets a process have in arguments and variables (execve(2))
_AT_ONCE = 16 << 10


def text_of(path: str, *, records: bool = False) -> str:
    """The text of a file that the kernel makes up. Raises OSError.

    A read that gives less than there was room for has reached the end, unless the file is made up in ``records``: the
    kernel then stops before one that doesn't fit into a page.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        text = os.read(fd, _AT_ONCE)
        if text and (records or len(text) == _AT_ONCE):
            text += b"".join(_rest(fd, records=records))
    finally:
        os.close(fd)
    return text.decode(errors="backslashreplace")


def _rest(fd: int, *, records: bool) -> Iterator[bytes]:
    left = READ_BYTES - _AT_ONCE
    while left > 0 and (part := os.read(fd, _AT_ONCE)):
        yield part
        left -= len(part)
        if len(part) < _AT_ONCE and not records:
            return
