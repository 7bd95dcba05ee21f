"""Dirty flags: shared memory in which the watch daemon marks the sandboxes whose watched files had events.

Most tool calls leave the watched files alone. Then the sandbox's flag isn't set, and the snapshot after the tool call
needs no request to the daemon. An event can't be missed, for three reasons: the kernel queues an event before it
returns from the system call that caused it; the daemon marks itself as busy before it takes events off the queue; and
it sets the flags of these events before it marks itself as idle.
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

SLOTS = 1 << 16  # one for each watched sandbox; the first says whether the daemon is busy
_BUSY = 0
_EMPTY = struct.pack("i", 0)


class DirtyFlags:
    """The watch daemon's side of the dirty flags, which sets and clears them."""

    def __init__(self) -> None:
        self._file = os.memfd_create("dirty-flags")
        os.ftruncate(self._file, SLOTS)
        self._page = mmap.mmap(self._file, SLOTS)

    def hand_over(self, connection: socket.socket, queue: int) -> None:
        """Send the client two file descriptors: the shared memory's and ``queue``, that of inotify's event queue."""
        socket.send_fds(connection, [b"."], [self._file, queue])

    def busy(self) -> None:
        """Mark the daemon as busy: it may have read events whose flags aren't set yet."""
        self._page[_BUSY] = 1

    def idle(self) -> None:
        """Mark the daemon as idle, which is right only after it has set the flags for all events that it has read."""
        self._page[_BUSY] = 0

    def mark(self, slot: int) -> None:
        """Set the dirty flag with the number ``slot``."""
        self._page[slot] = 1

    def clear(self, slot: int) -> None:
        """Clear the dirty flag with the number ``slot``."""
        self._page[slot] = 0


class DirtyFlagsReader:
    """Lets a client of the watch daemon read the dirty flags, in shared memory that the daemon sends.

    Raises OSError or ValueError if the daemon ended before it sent the flags.
    """

    def __init__(self, connection: socket.socket) -> None:
        _, (file, self._queue), _, _ = socket.recv_fds(connection, 1, 2)
        self._page = mmap.mmap(file, SLOTS, prot=mmap.PROT_READ)
        os.close(file)
        self._free = deque(range(_BUSY + 1, SLOTS))

    @contextmanager
    def allocated(self) -> Iterator[int]:
        """Allocate a flag to a sandbox while the ``with`` block runs, and yield the number of the flag."""
        slot = self._free.popleft()
        try:
            yield slot
        finally:
            self._free.append(slot)

    def quiet(self, slot: int) -> bool:
        """Whether a sandbox has no new file events for the client.

        That is so if inotify's queue is empty, the daemon is idle and the sandbox's flag isn't set. The order of these
        checks ensures that an event that the daemon is reading at that moment isn't missed.
        """
        return ioctl(self._queue, FIONREAD, _EMPTY) == _EMPTY and not self._page[_BUSY] and not self._page[slot]

    def close(self) -> None:
        """Close the shared memory and the client's descriptor of inotify's event queue."""
        self._page.close()
        os.close(self._queue)
