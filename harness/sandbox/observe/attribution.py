"""Whose doing it was that a watched file went away and came back: one process's, as when an editor saves, or several's.

A fanotify group that reports names tells each event's process, which inotify doesn't. See fanotify(7),
FAN_REPORT_DFID_NAME; overlayfs has it from Linux 5.9 on.
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
_TOOK, _PUT = _DELETE | _MOVED_FROM, _CREATE | _MOVED_TO
_EVENT = struct.Struct("=IBBHQii")
_INFO = struct.Struct("=BBHQIi")  # type, padding, length, file system, length and type of the folder's handle
_FOLDER_AND_NAME = 2
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessAttribution:
    """One sandbox's group. Raises NotAllowedError where the kernel can't tell."""

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
        flags = ctypes.c_uint(_MARK_ADD | _DONT_FOLLOW | _ONLY_FOLDERS)
        with suppress(OSError):
            above, name = root.parent(folder)
            return bool(
                _libc.fanotify_mark(self._group, flags, ctypes.c_uint64(_TOOK | _PUT), above, os.fsencode(name)) == 0
            )
        return False

    def one_process(self) -> frozenset[str] | None:
        """The paths that nobody took a file from, since this was last asked, who didn't put one there too.

        None where there was more than the kernel keeps. Paths of one name in two folders are told together.
        """
        did: dict[tuple[bytes, int], int] = defaultdict(int)
        whole = True
        for mask, process, name in self._events():
            whole = whole and not mask & _OVERFLOW
            did[name, process] |= mask
        took = {name for (name, _), mask in did.items() if mask & _TOOK and not mask & _PUT}
        return frozenset(path for name, path in self._paths.items() if name not in took) if whole else None

    def _events(self) -> Iterator[tuple[int, int, bytes]]:
        with suppress(BlockingIOError):
            while events := os.read(self._group, 1 << 16):
                at = 0
                while at + _EVENT.size <= len(events):
                    size, _, _, head, mask, _, process = _EVENT.unpack_from(events, at)
                    yield mask, process, _name(events[at + head : at + size])
                    at += size

    def close(self) -> None:
        """Let the group go. The kernel takes milliseconds for that, in which nobody must look away."""
        _closer().submit(os.close, self._group)


@cache
def _closer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1)


def _name(info: bytes) -> bytes:
    """The name that an event is about, or nothing."""
    if len(info) < _INFO.size:
        return b""
    kind, _, length, _, handle, _ = _INFO.unpack_from(info)
    return info[_INFO.size + handle : length].partition(b"\0")[0] if kind == _FOLDER_AND_NAME else b""
