"""Finds out whether the process that removed a file also created its replacement.

Some editors do both when they save a file. The kernel's inotify interface doesn't report which process caused an event,
so this module uses fanotify. See FAN_REPORT_DFID_NAME in fanotify(7), which overlayfs supports since Linux 5.9.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from posixpath import basename, dirname

from harness.sandbox.observe.exec_gate import ContainerRoot, NotAllowedError

_REPORT_NAMES, _CLOEXEC, _NONBLOCK = 0x0C00, 0x01, 0x02
_MARK_ADD, _DONT_FOLLOW, _ONLY_FOLDERS = 0x01, 0x04, 0x08
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _OVERFLOW = 0x40, 0x80, 0x100, 0x200, 0x4000
_REMOVED, _ADDED = _DELETE | _MOVED_FROM, _CREATE | _MOVED_TO
_EVENT = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBHQIi")  # type, padding, length, file system, length and type of the folder's handle
_FOLDER_AND_NAME = 2
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessAttribution:
    """A fanotify group that reports which processes create and remove the watched files of one sandbox.

    The constructor raises NotAllowedError if the kernel doesn't support or permit such a group.
    """

    def __init__(self, root: ContainerRoot, paths: Iterable[str]) -> None:
        self._paths = {os.fsencode(basename(path)): path for path in sorted(paths)}
        self._group = _libc.fanotify_init(_REPORT_NAMES | _CLOEXEC | _NONBLOCK, os.O_RDONLY)
        if self._group < 0:
            raise NotAllowedError(ctypes.get_errno(), "fanotify")
        for folder in {dirname(path) for path in self._paths.values()}:
            if not self._mark(root, folder):
                self.close()
                raise NotAllowedError(ctypes.get_errno(), "fanotify")

    def _mark(self, root: ContainerRoot, folder: str) -> bool:
        flags, events = ctypes.c_uint(_MARK_ADD | _DONT_FOLLOW | _ONLY_FOLDERS), ctypes.c_uint64(_REMOVED | _ADDED)
        with suppress(OSError):
            above, name = root.parent(folder)
            return bool(_libc.fanotify_mark(self._group, flags, events, above, os.fsencode(name)) == 0)
        return False

    def one_process(self) -> frozenset[str] | None:
        """Return the watched paths, without those at which a process only removed a file.

        A path is left out if a process removed a file there and didn't create a new one there itself. Only events since
        the last call are considered. Events are matched to paths by file name only. Returns None if the kernel dropped
        events.
        """
        done: dict[tuple[bytes, int], int] = defaultdict(int)  # event types by file name and process
        complete = True
        for mask, process, name in self._events():
            complete = complete and not mask & _OVERFLOW
            done[name, process] |= mask
        only_removed = {name for (name, _), mask in done.items() if mask & _REMOVED and not mask & _ADDED}
        return frozenset(path for name, path in self._paths.items() if name not in only_removed) if complete else None

    def _events(self) -> Iterator[tuple[int, int, bytes]]:
        with suppress(BlockingIOError):
            while events := os.read(self._group, 1 << 16):
                offset = 0
                while offset + _EVENT.size <= len(events):
                    size, _, _, header, mask, _, process = _EVENT.unpack_from(events, offset)
                    yield mask, process, _name(events[offset + header : offset + size])
                    offset += size

    def close(self) -> None:
        """Close the fanotify group on another thread.

        Closing the group takes milliseconds and would otherwise delay the watch daemon.
        """
        _closer().submit(os.close, self._group)


@cache
def _closer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1)


def _name(info: bytes) -> bytes:
    """Return the file name in the information record of a fanotify event, or b"" if the record contains no name."""
    if len(info) < _INFO.size:
        return b""
    kind, _, length, _, handle, _ = _INFO.unpack_from(info)
    return info[_INFO.size + handle : length].partition(b"\0")[0] if kind == _FOLDER_AND_NAME else b""
