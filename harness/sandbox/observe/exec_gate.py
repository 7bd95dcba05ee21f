"""Who opens or starts a watched file: the kernel holds them until they were looked at.

A fanotify permission mark on the file's inode makes whoever opens or executes it wait for this process's word, so
what they were and what they brought along is read while they stand still, and what the file was at that moment is
certain. They are always let go. What is read of a process was chosen by it: it is bounded, and proves only what that
process did to itself. See fanotify(7), proc(5).
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from posixpath import basename

from harness.judging.bypass import BUILTINS, INTERPRETER
from harness.judging.evidence import FileAccess
from harness.sandbox.observe.procfs import text_of

KEPT = 500  # openings of one sandbox by readers, and starts; more are a flood, and whoever makes it is held no more
WORDS, WORD = 16, 300  # of a command line, and of a variable's value, that are kept
COMMON = 4_096  # characters of an environment that may be met again

_CLASS_CONTENT, _CLOEXEC, _NONBLOCK, _UNLIMITED = 0x04, 0x01, 0x02, 0x10 | 0x20
_MARK_ADD, _MARK_REMOVE, _DONT_FOLLOW = 0x01, 0x02, 0x04
_OPEN_PERM, _OPEN_EXEC_PERM = 0x00010000, 0x00040000
_HELD = _OPEN_PERM | _OPEN_EXEC_PERM
_ALLOW = 0x01
_EVENT = struct.Struct("=IBBHQii")
_READ = 4096  # bytes of events at once
_NAMESPACE = "ns/pid"
_RESPONSE = struct.Struct("=iI")
_libc = ctypes.CDLL(None, use_errno=True)

# The variables that change what bash, Python or the dynamic loader does before a script's first line. They are named
# one by one, so that what is kept is bounded and none can be crowded out by others.
_TELLING = re.compile(
    r"BASH_ENV|SHELLOPTS|BASHOPTS|PS4|PATH|IFS|ENV|PYTHON(PATH|HOME|STARTUP|INSPECT|PLATLIBDIR)"
    r"|LD_(PRELOAD|AUDIT|LIBRARY_PATH|DEBUG|TRACE_LOADED_OBJECTS|VERIFY)"
)
_FUNCTION = re.compile(r"BASH_FUNC_(.*)(%%|\(\))")
_LIMITS = {
    "Max cpu time": "cpu",
    "Max file size": "file size",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max processes": "processes",
    "Max open files": "open files",
    "Max address space": "address space",
}
_SOFT = re.compile(rf"^({'|'.join(_LIMITS)}) +([0-9]+) ", re.MULTILINE)
# The kernel escapes a line's end in a process's name, the one thing in there that the process can choose.
_TOLD = re.compile(r"\n(PPid|Uid|TracerPid|Seccomp_filters):\t([0-9]+)")


class NotAllowedError(OSError):
    """The host doesn't let the lab hold anybody."""


@dataclass
class WatchedContainer:
    """One sandbox's watched files, and who opened them so far. ``name`` is that of its watch.

    ``words`` are those of the watched files: a function of another name tells nothing. ``programs`` are the paths whose
    readers aren't held. ``readers_go_free``: there were so many that only whoever starts a file is held any more;
    ``lost``: of those, too, there were too many.
    """

    name: str
    merged: str
    paths: frozenset[str]
    container: str
    first: int
    words: frozenset[str] = frozenset()
    programs: set[str] = field(default_factory=set)
    seen: list[FileAccess] = field(default_factory=list)
    ignores_readers: bool = False
    lost: bool = False
    files: dict[tuple[int, int], str] = field(default_factory=dict)
    executing: tuple[int, str] | None = None
    baseline: tuple[dict[str, int], int] = field(init=False)
    processes: str = field(init=False)  # the name of the container's process namespace

    def __post_init__(self) -> None:
        self.baseline = _limits(self.first), int(_status(self.first).get("Seccomp_filters", 0))
        self.processes = _link(self.first, _NAMESPACE)

    def has_process(self, pid: int, status: dict[str, str]) -> bool:
        """Whether this is a process of the container: a child of its first one is, or one in the same namespace."""
        if not status:
            return False  # it is gone
        inside = status.get("PPid") == str(self.first) or _link(pid, _NAMESPACE) == self.processes != ""
        return inside or self.container in _text(pid, "cgroup")


class PermissionGate:
    """All doors, and the one fanotify group behind them. Raises NotAllowedError where there can be none."""

    def __init__(self) -> None:
        flags = _CLASS_CONTENT | _CLOEXEC | _NONBLOCK | _UNLIMITED
        self.group = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_LARGEFILE)
        if self.group < 0:
            raise NotAllowedError(ctypes.get_errno(), "fanotify")
        self._containers: dict[tuple[int, int], WatchedContainer] = {}  # by device and inode of the files behind them

    def fileno(self) -> int:
        """What to poll."""
        return int(self.group)

    def open(self, container: WatchedContainer, root: ContainerRoot) -> None:
        """Hold whoever opens this sandbox's files from now on. Raises NotAllowedError where the kernel won't."""
        for path in container.paths:
            self.mark(container, root, path)
        if not container.files:
            raise NotAllowedError(ctypes.get_errno(), "fanotify")

    def mark(self, container: WatchedContainer, root: ContainerRoot, path: str) -> None:
        """Hold whoever opens the regular file that stands at a path now; without one, nothing."""
        if container.lost or path not in container.paths:
            return
        with suppress(OSError):
            folder, name = root.parent(path)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            held = _OPEN_EXEC_PERM if container.ignores_readers or path in container.programs else _HELD
            # Also one that seems known: a file that is gone took its mark along, and its number may be another's now.
            if stat.S_ISREG(found.st_mode) and self._mark(_MARK_ADD, held, folder, name):
                place = found.st_dev, found.st_ino
                container.files[place], self._containers[place] = path, container

    def _mark(self, action: int, held: int, folder: int, name: str | None) -> bool:
        """Mark the file of that name in a folder, or without a name the open file itself."""
        flags, path = ctypes.c_uint(action | (_DONT_FOLLOW if name else 0)), name and os.fsencode(name)
        done: int = _libc.fanotify_mark(self.group, flags, ctypes.c_uint64(held), folder, path)
        return done == 0

    def forget(self, container: WatchedContainer) -> None:
        """Note nobody at this door any more: its container goes, and with it its files and their marks.

        Whoever is held until then is let go, as a process is that has nothing to do with a trial.
        """
        for place in container.files:
            if (
                self._containers.get(place) is container
            ):  # another container's file may have the number of one that is gone
                del self._containers[place]
        container.files.clear()

    def close(self, container: WatchedContainer) -> None:
        """Hold nobody at this door any more."""
        with closing(ContainerRoot(container.merged)) as root:
            for path in container.files.values():
                with suppress(OSError):
                    self._mark(_MARK_REMOVE, _HELD, *root.parent(path))
        self.forget(container)

    def held(self) -> Iterator[tuple[WatchedContainer, str]]:
        """Note and let go whoever is held; yields the door and path while they still stand."""
        while True:
            try:
                events = os.read(self.group, _READ)
            except BlockingIOError:
                return
            for at in range(0, len(events) - _EVENT.size + 1, _EVENT.size):
                _, _, _, _, mask, file, pid = _EVENT.unpack_from(events, at)
                if file < 0:
                    continue
                try:
                    yield from self._note(file, mask, pid)
                finally:
                    with suppress(OSError):  # whoever was held may be gone
                        os.write(self.group, _RESPONSE.pack(file, _ALLOW))
                    os.close(file)
            if len(events) <= _READ - _EVENT.size:
                return  # those were all

    def _note(self, file: int, mask: int, pid: int) -> Iterator[tuple[WatchedContainer, str]]:
        found = os.fstat(file)
        place = found.st_dev, found.st_ino
        container = self._containers.get(place)
        if container is None:
            return
        path = container.files[place]
        executed = bool(mask & _OPEN_EXEC_PERM)
        if not executed and container.executing == (pid, path):
            container.executing = None  # the kernel opens what it is about to execute, and says so twice
            return
        status = _status(pid)
        if not container.has_process(pid, status):
            return
        container.executing = (pid, path) if executed and path not in container.programs else None
        if self._too_many(container, file, executed=executed):
            return
        container.seen.append(file_access_of(pid, status, path, container, executed=executed))
        yield container, path

    def _too_many(self, container: WatchedContainer, file: int, *, executed: bool) -> bool:
        """Whether this is one of a flood; whoever only reads is then held no more, and after so many starts nobody."""
        starts = sum(each.started for each in container.seen)
        if executed and starts >= KEPT:
            container.lost = True
            self.close(container)
        elif not executed and len(container.seen) - starts >= KEPT:
            container.ignores_readers = True
            self._mark(_MARK_REMOVE, _OPEN_PERM, file, None)
        else:
            return False
        return True


class ContainerRoot:
    """A container's root as its host has it, whose folders are opened once, and none through a link. To be closed."""

    def __init__(self, merged: str) -> None:
        self._merged = merged
        self._open: dict[str, int] = {}

    def parent(self, path: str) -> tuple[int, str]:
        """The folder of a path, and its last name there. Raises OSError."""
        folder, _, name = path.strip("/").rpartition("/")
        return self._folder(folder), name or "."

    def _folder(self, path: str) -> int:
        if path not in self._open:
            above, _, name = path.rpartition("/")
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            opened = os.open(name, flags, dir_fd=self._folder(above)) if path else os.open(self._merged, flags)
            self._open[path] = opened
        return self._open[path]

    def close(self) -> None:
        """Let the folders go."""
        for folder in self._open.values():
            os.close(folder)
        self._open.clear()


# ---- what a held process is ----


def file_access_of(
    pid: int, status: dict[str, str], path: str, container: WatchedContainer, *, executed: bool
) -> FileAccess:
    """What a process is and brought along. ``at_s`` is the monotonic clock."""
    limits = _limits(pid)
    usual_limits, usual_filters = container.baseline
    argv, program = _words_in(_text(pid, "cmdline")), _link(pid, "exe")
    return FileAccess(
        at_s=time.monotonic(),
        path=path,
        started=executed or _interprets(program, argv, path),
        process=pid,
        parent=int(status.get("PPid", 0)),
        argv=tuple(word[:WORD] for word in argv[:WORDS]),
        program=program,
        cwd=_link(pid, "cwd"),
        uid=int(status.get("Uid", 0)),
        environment=_environment(pid, container.words),
        limits={name: value for name, value in limits.items() if value < usual_limits.get(name, value)},
        traced=status.get("TracerPid", "0") != "0",
        filters=max(0, int(status.get("Seccomp_filters", 0)) - usual_filters),
    )


def _interprets(program: str, argv: list[str], path: str) -> bool:
    """Whether this is an interpreter that was given the file to run."""
    options = list(takewhile(lambda word: word.startswith(("-", "+")), argv[1:]))
    given = "" if "-c" in options else next(iter(argv[len(options) + 1 :]), "")
    if basename(program).endswith("sh") and "-n" in options and "+n" not in options:
        return False  # it checks the words and runs none
    return bool(INTERPRETER.fullmatch(basename(program))) and basename(given) == basename(path)


def _environment(pid: int, words: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """The telling variables, in their order.

    Of several of one name the first and the last are kept: some programs obey the one, some the other.
    """
    text = _text(pid, "environ")
    return _telling_in(text, words) if len(text) <= COMMON else _telling_in.__wrapped__(text, words)


@lru_cache(maxsize=100)  # most processes of most containers have the same
def _telling_in(text: str, words: frozenset[str]) -> tuple[tuple[str, str], ...]:
    pairs = [(name, value) for name, _, value in (word.partition("=") for word in _words_in(text))]
    telling = [(at, name) for at, (name, _) in enumerate(pairs) if _tells(name, words)]
    last = {name: at for at, name in telling}
    first = {name: at for at, name in reversed(telling)}
    kept = sorted({*first.values(), *last.values()})
    return tuple((name[:WORD], value[:WORD]) for name, value in (pairs[at] for at in kept))


def _tells(name: str, words: frozenset[str]) -> bool:
    function = _FUNCTION.fullmatch(name)
    return function[1] in words | BUILTINS if function else bool(_TELLING.fullmatch(name))


def _words_in(text: str) -> list[str]:
    return text.rstrip("\0").split("\0")


def _status(pid: int) -> dict[str, str]:
    """The lines that tell something, each with its first word; none where the process is gone."""
    return dict(_TOLD.findall(_text(pid, "status")))


def _limits(pid: int) -> dict[str, int]:
    """The soft limits, in the kernel's units; one that is unlimited is left out."""
    return dict(_limits_in(_text(pid, "limits")))


@lru_cache(maxsize=100)  # as above
def _limits_in(text: str) -> tuple[tuple[str, int], ...]:
    return tuple((_LIMITS[name], int(soft)) for name, soft in _SOFT.findall(text))


def _text(pid: int, name: str) -> str:
    """A file of a process; nothing where it is gone."""
    try:
        return text_of(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def _link(pid: int, name: str) -> str:
    try:
        return os.fsencode(os.readlink(f"/proc/{pid}/{name}")).decode(errors="backslashreplace")
    except OSError:
        return ""
