"""Dirty flags in shared memory, with which the watch daemon marks the sandboxes that have new file events.

The client requests a sandbox's events from the daemon only if there may be new ones. This saves time, because most tool
calls cause no events at the watched files.

Events are never missed, for three reasons. The kernel queues an event before it returns from the system call that
caused the event. The daemon marks itself as busy before it reads events from the queue. The daemon marks itself as idle
only after it has set the flags for all events that it has read.
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
    """The watch daemon's view of the dirty flags, through which the daemon sets and clears them."""

    def __init__(self) -> None:
        self._file = os.memfd_create("dirty-flags")
        os.ftruncate(self._file, SLOTS)
        self._page = mmap.mmap(self._file, SLOTS)

    def hand_over(self, connection: socket.socket, queue: int) -> None:
        """Send the file descriptors of the shared memory and of inotify's event queue to the client.

        ``queue`` is the file descriptor of the event queue.
        """
        socket.send_fds(connection, [b"."], [self._file, queue])

    def busy(self) -> None:
        """Mark the daemon as busy. A busy daemon may have read events for which no dirty flag is set yet."""
        self._page[_BUSY] = 1

    def idle(self) -> None:
        """Mark the daemon as idle.

        Before this call, the daemon must have set the dirty flags for all events that it has read.
        """
        self._page[_BUSY] = 0

    def mark(self, slot: int) -> None:
        """Set the dirty flag with the number ``slot``."""
        self._page[slot] = 1

    def clear(self, slot: int) -> None:
        """Clear the dirty flag with the number ``slot``."""
        self._page[slot] = 0


class DirtyFlagsReader:
    """The client's read-only view of the dirty flags in shared memory.

    The constructor receives the shared memory from the watch daemon through ``connection``. It raises OSError or
    ValueError if the daemon has ended before sending the shared memory.
    """

    def __init__(self, connection: socket.socket) -> None:
        _, (file, self._queue), _, _ = socket.recv_fds(connection, 1, 2)
        self._page = mmap.mmap(file, SLOTS, prot=mmap.PROT_READ)
        os.close(file)
        self._free = deque(range(_BUSY + 1, SLOTS))

    @contextmanager
    def allocated(self) -> Iterator[int]:
        """Reserve a dirty flag for a sandbox while the ``with`` block runs, and yield the number of the flag."""
        slot = self._free.popleft()
        try:
            yield slot
        finally:
            self._free.append(slot)

    def quiet(self, slot: int) -> bool:
        """Return whether a sandbox has no new file events.

        This is true if inotify's event queue is empty, the daemon is idle and the sandbox's dirty flag isn't set. The
        conditions are checked in this order. In another order, an event could be missed while the daemon reads it.
        """
        return ioctl(self._queue, FIONREAD, _EMPTY) == _EMPTY and not self._page[_BUSY] and not self._page[slot]

    def close(self) -> None:
        """Close the shared memory and the client's file descriptor of inotify's event queue."""
        self._page.close()
        os.close(self._queue)
