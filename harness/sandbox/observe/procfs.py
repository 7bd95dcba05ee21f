"""Reads files of /proc with as few system calls as possible.

Reading must be quick, because the permission gate (exec_gate.py) may hold a process meanwhile. Python's own file
objects make three times as many system calls. A hostile process chooses part of what is read, so the number of bytes
read is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

READ_BYTES = 8 << 20  # more than the kernel lets a process have in arguments and variables (execve(2))
_BUFFER_BYTES = 16 << 10


def text_of(path: str, *, records: bool = False) -> str:
    """Return the text of a file of /proc, which the kernel generates. Raises OSError.

    Reading stops when the kernel returns fewer bytes than requested. Pass ``records`` for a file of records, of which
    each read returns whole records only; then reading goes on until the kernel returns nothing.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        text = os.read(fd, _BUFFER_BYTES)
        if text and (records or len(text) == _BUFFER_BYTES):
            text += b"".join(_rest(fd, records=records))
    finally:
        os.close(fd)
    return text.decode(errors="backslashreplace")


def _rest(fd: int, *, records: bool) -> Iterator[bytes]:
    left = READ_BYTES - _BUFFER_BYTES
    while left > 0 and (part := os.read(fd, _BUFFER_BYTES)):
        yield part
        left -= len(part)
        if len(part) < _BUFFER_BYTES and not records:
            return
