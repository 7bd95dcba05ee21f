"""Reads files of /proc with as few system calls as possible, because a held process waits meanwhile (exec_gate.py).

Python's own file objects take three times as many. A hostile process chooses part of what is read, so it is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

READ_BYTES = 8 << 20  # more than the kernel lets a process have in arguments and variables (execve(2))
_BUFFER_BYTES = 16 << 10


def text_of(path: str, *, records: bool = False) -> str:
    """Read a file that the kernel generates. Raises OSError.

    A short read means the end of the file, except where the file consists of ``records``: there the kernel ends a read
    before a record that doesn't fit into a page.
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
