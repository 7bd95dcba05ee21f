"""Whether anything happened to watched files, told without a question: a page that the eye writes and the lab reads.

Most calls leave the watched folders alone, and then a look need not ask the eye. That nothing happened is certain: the
kernel has queued an event before the call that brought it about returns, the eye says that it is busy before it takes
events off the queue, and marks whom they are about before it says that it is idle again.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from termios import FIONREAD

SLOTS = 1 << 16  # one a sandbox that is watched at the moment; the first says whether the eye is busy
_BUSY = 0
_NONE = struct.pack("i", 0)


class DirtyFlags:
    """The eye's side."""

    def __init__(self) -> None:
        self._file = os.memfd_create("slate")
        os.ftruncate(self._file, SLOTS)
        self._page = mmap.mmap(self._file, SLOTS)

    def hand_over(self, line: socket.socket, queue: int) -> None:
        """Let the lab see the page, and how much is in the queue of events."""
        socket.send_fds(line, [b"."], [self._file, queue])

    def busy(self) -> None:
        """From now on events may be off the queue and not looked at yet."""
        self._page[_BUSY] = 1

    def idle(self) -> None:
        """All that was taken off the queue has been looked at."""
        self._page[_BUSY] = 0

    def mark(self, slot: int) -> None:
        """Something happened there."""
        self._page[slot] = 1

    def clear(self, slot: int) -> None:
        """All that happened there so far was told."""
        self._page[slot] = 0


class DirtyFlagsReader:
    """The lab's side."""

    def __init__(self, line: socket.socket) -> None:
        _, (file, self._queue), _, _ = socket.recv_fds(line, 1, 2)
        self._page = mmap.mmap(file, SLOTS, prot=mmap.PROT_READ)
        os.close(file)
        self._free = deque(range(_BUSY + 1, SLOTS))

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A place of one's own while the block runs."""
        slot = self._free.popleft()
        try:
            yield slot
        finally:
            self._free.append(slot)

    def quiet(self, slot: int) -> bool:
        """Whether nothing has happened there that wasn't told. To be asked in this order, see above."""
        return ioctl(self._queue, FIONREAD, _NONE) == _NONE and not self._page[_BUSY] and not self._page[slot]

    def close(self) -> None:
        """Let page and queue go."""
        self._page.close()
        os.close(self._queue)
