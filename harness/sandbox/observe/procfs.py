"""Reads files in /proc with as few system calls as possible.

Reading must be fast, because the permission gate (exec_gate.py) may be holding a process at that time. Python's own
file objects make three times as many system calls. A hostile process can choose part of the data, so the number of
bytes read is limited.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

READ_BYTES = 8 << 20  # more than the kernel lets a process have in arguments and variables (execve(2))
_BUFFER_BYTES = 16 << 10


def text_of(path: str, *, records: bool = False, errors: str = "backslashreplace") -> str:
    """Return the text of a file in /proc. Raises OSError if the file can't be read.

    Set ``records`` for a file from which each read returns only whole records, such as a list of process IDs. Reading
    then ends when the kernel returns no bytes. If ``records`` is false, reading ends when the kernel returns fewer
    bytes than requested. ``errors`` says how bytes that aren't UTF-8 are decoded (see ``bytes.decode``).
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        text = os.read(fd, _BUFFER_BYTES)
        if text and (records or len(text) == _BUFFER_BYTES):
            text += b"".join(_rest(fd, records=records))
    finally:
        os.close(fd)
    return text.decode(errors=errors)


def _rest(fd: int, *, records: bool) -> Iterator[bytes]:
    left = READ_BYTES - _BUFFER_BYTES
    while left > 0 and (part := os.read(fd, _BUFFER_BYTES)):
        yield part
        left -= len(part)
        if len(part) < _BUFFER_BYTES and not records:
            return
