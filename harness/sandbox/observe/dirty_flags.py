"""Dirty flags: shared memory in which the watch daemon marks the sandboxes whose watched files had events.

Most tool calls leave the watched files alone, and then a snapshot need not ask the daemon. A flag that isn't set is
certain: the kernel queues an event before the system call that caused it returns, the daemon marks itself busy before
it takes events off the queue, and sets the flags of these events before it marks itself idle.
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
    """The flags as the watch daemon writes them."""

    def __init__(self) -> None:
        self._file = os.memfd_create("dirty-flags")
        os.ftruncate(self._file, SLOTS)
        self._page = mmap.mmap(self._file, SLOTS)

    def hand_over(self, connection: socket.socket, queue: int) -> None:
        """Send the flags and inotify's event queue to the client as file descriptors."""
        socket.send_fds(connection, [b"."], [self._file, queue])

    def busy(self) -> None:
        """Mark the daemon as busy: events may be off the queue whose flags aren't set yet."""
        self._page[_BUSY] = 1

    def idle(self) -> None:
        """Mark the daemon as idle: the flags of all events taken off the queue are set."""
        self._page[_BUSY] = 0

    def mark(self, slot: int) -> None:
        """Set a sandbox's flag."""
        self._page[slot] = 1

    def clear(self, slot: int) -> None:
        """Clear a sandbox's flag, once the client has been given all its events."""
        self._page[slot] = 0


class DirtyFlagsReader:
    """The flags as the daemon's client reads them, received over its connection.

    Raises OSError or ValueError where the daemon ended before it sent them.
    """

    def __init__(self, connection: socket.socket) -> None:
        _, (file, self._queue), _, _ = socket.recv_fds(connection, 1, 2)
        self._page = mmap.mmap(file, SLOTS, prot=mmap.PROT_READ)
        os.close(file)
        self._free = deque(range(_BUSY + 1, SLOTS))

    @contextmanager
    def allocated(self) -> Iterator[int]:
        """Allocate a flag that no other sandbox uses while the block runs."""
        slot = self._free.popleft()
        try:
            yield slot
        finally:
            self._free.append(slot)

    def quiet(self, slot: int) -> bool:
        """Whether the client already knows all events of a sandbox. The order of the three checks matters."""
        return ioctl(self._queue, FIONREAD, _EMPTY) == _EMPTY and not self._page[_BUSY] and not self._page[slot]

    def close(self) -> None:
        """Close the shared memory and the queue."""
        self._page.close()
        os.close(self._queue)
