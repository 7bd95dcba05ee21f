"""The permission gate, which records each process that opens or executes a watched file.

The gate puts a fanotify permission mark on the inode of each watched file. The kernel then holds a process that opens
or executes the file until the daemon gives permission. The daemon reads the process's arguments, environment, resource
limits and working folder from /proc, and then always gives permission. A hostile process can choose these values.
Therefore only a limited amount is read, and the values are evidence about that process only. See fanotify(7) and
proc(5).
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from posixpath import basename

from harness.judging.evidence import INTERPRETER, FileAccess
from harness.sandbox.observe.procfs import text_of

MAX_ACCESSES = 500  # kept for one sandbox, of reads and of starts each; with more, its processes are no longer held
MAX_ARGUMENTS, MAX_CHARACTERS = 16, 300  # kept of a command line, and of each argument, variable name and value
MAX_FUNCTIONS = 200  # exported shell functions kept of one environment, beside the likely ones
CACHED_CHARACTERS = 4_096  # only an environment up to this length is cached: it may be met again

_CLASS_CONTENT, _CLOEXEC, _NONBLOCK, _UNLIMITED = 0x04, 0x01, 0x02, 0x10 | 0x20
_MARK_ADD, _MARK_REMOVE, _DONT_FOLLOW = 0x01, 0x02, 0x04
_OPEN_PERM, _OPEN_EXEC_PERM = 0x00010000, 0x00040000
_ANY_ACCESS = _OPEN_PERM | _OPEN_EXEC_PERM
_ALLOW = 0x01
_EVENT = struct.Struct("=IBBHQii")
_BUFFER_BYTES = 4096  # of events, read at once
_NAMESPACE = "ns/pid"
_RESPONSE = struct.Struct("=iI")
_libc = ctypes.CDLL(None, use_errno=True)

# The variables that change what bash, Python or the dynamic loader does before a script's first line. Each is named
# here, so that the number kept is bounded and other variables can't displace them.
_STARTUP_VARIABLE = re.compile(
    r"BASH_ENV|SHELLOPTS|BASHOPTS|PS4|PATH|IFS|ENV|PYTHON(PATH|HOME|STARTUP|INSPECT|PLATLIBDIR)"
    r"|LD_(PRELOAD|AUDIT|LIBRARY_PATH|DEBUG|TRACE_LOADED_OBJECTS|VERIFY)"
)
_EXPORTED_FUNCTION = re.compile(r"BASH_FUNC_(.*)(%%|\(\))")
# Bash's builtins, which a script can use without their path.
_BUILTIN = re.compile(
    r"[.:\[]|alias|bg|bind|break|builtin|caller|cd|command|compgen|complete|compopt|continue|declare|dirs|disown|echo"
    r"|enable|eval|exec|exit|export|false|fc|fg|getopts|hash|help|history|jobs|kill|let|local|logout|mapfile|popd|printf"
    r"|pushd|pwd|read|readarray|readonly|return|set|shift|shopt|source|suspend|test|times|trap|true|type|typeset|ulimit"
    r"|umask|unalias|unset|wait"
)
_LIMITS = {
    "Max cpu time": "cpu",
    "Max file size": "file size",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max processes": "processes",
    "Max open files": "open files",
    "Max address space": "address space",
}
_SOFT_LIMIT = re.compile(rf"^({'|'.join(_LIMITS)}) +([0-9]+) ", re.MULTILINE)
# A process can choose its own name, which is in this file too, but the kernel escapes line ends in it.
_STATUS_LINE = re.compile(r"\n(PPid|Uid|TracerPid|Seccomp_filters):\t([0-9]+)")


class NotAllowedError(OSError):
    """Raised if the host's kernel doesn't allow the lab to use fanotify."""


@dataclass
class WatchedContainer:
    """A sandbox at the permission gate, with its watched files and the accesses recorded so far.

    ``name`` identifies the sandbox in requests to the daemon. ``container`` is the container's ID, and ``first`` is the
    process ID of its first process. ``programs`` are the watched paths at which only executions are recorded, not
    reads. ``likely`` are the words in the watched scripts, which include the names of the commands that the scripts
    call. After too many reads, ``ignores_readers`` is true, and no more reads are recorded. After too many starts,
    ``incomplete`` is true, and no more accesses are recorded.
    """

    name: str
    merged: str
    paths: frozenset[str]
    container: str
    first: int
    programs: set[str] = field(default_factory=set)
    likely: frozenset[str] = frozenset()
    accesses: list[FileAccess] = field(default_factory=list)
    ignores_readers: bool = False
    incomplete: bool = False
    files: dict[tuple[int, int], str] = field(default_factory=dict)
    executing: tuple[int, str] | None = None
    baseline: tuple[dict[str, int], int] = field(init=False)  # the first process's limits and system call filters
    pid_namespace: str = field(init=False)

    def __post_init__(self) -> None:
        self.baseline = _limits(self.first), int(_status(self.first).get("Seccomp_filters", 0))
        self.pid_namespace = _link(self.first, _NAMESPACE)

    def has_process(self, pid: int, status: dict[str, str]) -> bool:
        """Return whether a process belongs to the container, based on its parent, PID namespace or control group.

        ``status`` contains entries of the process's /proc/PID/status. It is empty if the process has ended, and then
        the result is False.
        """
        if not status:
            return False  # the process has ended
        inside = status.get("PPid") == str(self.first) or _link(pid, _NAMESPACE) == self.pid_namespace != ""
        return inside or self.container in _text(pid, "cgroup")


class PermissionGate:
    """The fanotify group with which the kernel holds processes that open or execute watched files in any sandbox.

    A held process waits until the lab releases it. The constructor raises NotAllowedError if the kernel doesn't let the
    lab create such a group.
    """

    def __init__(self) -> None:
        flags = _CLASS_CONTENT | _CLOEXEC | _NONBLOCK | _UNLIMITED
        self.group = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_LARGEFILE)
        if self.group < 0:
            raise NotAllowedError(ctypes.get_errno(), "fanotify")
        self._containers: dict[tuple[int, int], WatchedContainer] = {}  # by device and inode of each watched file

    def fileno(self) -> int:
        """Return the file descriptor of the fanotify group. It becomes readable when the kernel holds a process."""
        return int(self.group)

    def open(self, container: WatchedContainer, root: ContainerRoot) -> None:
        """Start to hold each process that opens or executes one of a sandbox's watched files.

        A held process waits until its access has been recorded. Raises NotAllowedError if no watched file could be
        marked.
        """
        for path in container.paths:
            self.mark(container, root, path)
        if not container.files:
            raise NotAllowedError(ctypes.get_errno(), "fanotify")

    def mark(self, container: WatchedContainer, root: ContainerRoot, path: str) -> None:
        """Start to hold each process that opens or executes the regular file that is now at ``path``.

        A held process waits until its access has been recorded. The method does nothing if the path isn't watched or no
        regular file is there.
        """
        if container.incomplete or path not in container.paths:
            return
        with suppress(OSError):
            folder, name = root.parent(path)
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            only_starts = container.ignores_readers or path in container.programs
            held = _OPEN_EXEC_PERM if only_starts else _ANY_ACCESS
            # An inode that seems marked is marked again: its number may be that of a deleted file, whose mark is gone.
            if stat.S_ISREG(found.st_mode) and self._mark(_MARK_ADD, held, folder, name):
                inode = found.st_dev, found.st_ino
                container.files[inode], self._containers[inode] = path, container

    def _mark(self, action: int, held: int, folder: int, name: str | None) -> bool:
        """Add or remove a fanotify mark on a file, and return whether the kernel accepted the change.

        ``action`` is ``_MARK_ADD`` or ``_MARK_REMOVE``. ``held`` is the bit mask of the kinds of access for which
        processes are held. ``name`` is the file's name in the open folder ``folder``. If ``name`` is None, ``folder``
        is the descriptor of the file itself.
        """
        flags, path = ctypes.c_uint(action | (_DONT_FOLLOW if name else 0)), name and os.fsencode(name)
        done: int = _libc.fanotify_mark(self.group, flags, ctypes.c_uint64(held), folder, path)
        return done == 0

    def forget(self, container: WatchedContainer) -> None:
        """Stop recording accesses to the files of a sandbox that is being removed.

        The kernel removes a file's fanotify mark when the file is removed. Until then, processes that the kernel holds
        are released without a record.
        """
        for inode in container.files:
            # Another container's new file may have the inode number of a deleted one.
            if self._containers.get(inode) is container:
                del self._containers[inode]
        container.files.clear()

    def close(self, container: WatchedContainer) -> None:
        """Stop holding the processes of a sandbox, and stop recording accesses to its files."""
        with closing(ContainerRoot(container.merged)) as root:
            for path in container.files.values():
                with suppress(OSError):
                    self._mark(_MARK_REMOVE, _ANY_ACCESS, *root.parent(path))
        self.forget(container)

    def held(self) -> Iterator[tuple[WatchedContainer, str]]:
        """Record each held process's file access, yield the sandbox and the file's path, and then release the process.

        The process is still held while the caller handles the yielded pair.
        """
        while True:
            try:
                events = os.read(self.group, _BUFFER_BYTES)
            except BlockingIOError:
                return
            for offset in range(0, len(events) - _EVENT.size + 1, _EVENT.size):
                _, _, _, _, mask, file, pid = _EVENT.unpack_from(events, offset)
                if file < 0:
                    continue
                try:
                    yield from self._record(file, mask, pid)
                finally:
                    with suppress(OSError):  # the held process may have ended
                        os.write(self.group, _RESPONSE.pack(file, _ALLOW))
                    os.close(file)
            if len(events) <= _BUFFER_BYTES - _EVENT.size:
                return  # the buffer was not full, so no event is left

    def _record(self, file: int, mask: int, pid: int) -> Iterator[tuple[WatchedContainer, str]]:
        found = os.fstat(file)
        inode = found.st_dev, found.st_ino
        container = self._containers.get(inode)
        if container is None:
            return
        path = container.files[inode]
        executed = bool(mask & _OPEN_EXEC_PERM)
        if not executed and container.executing == (pid, path):
            container.executing = None  # the kernel reports an execution twice: as a start and as an open
            return
        status = _status(pid)
        if not container.has_process(pid, status):
            return
        container.executing = (pid, path) if executed and path not in container.programs else None
        if self._over_limit(container, file, executed=executed):
            return
        container.accesses.append(file_access_of(pid, status, path, container, executed=executed))
        yield container, path

    def _over_limit(self, container: WatchedContainer, file: int, *, executed: bool) -> bool:
        """Hold fewer processes of a sandbox if ``MAX_ACCESSES`` accesses have been recorded for the sandbox.

        Returns whether this limit has been reached. If ``executed`` is true, only starts are counted. At the limit, no
        process is held any more. If ``executed`` is false, only reads are counted. At the limit, processes that only
        read the open file ``file`` are no longer held.
        """
        starts = sum(each.started for each in container.accesses)
        if executed and starts >= MAX_ACCESSES:
            container.incomplete = True
            self.close(container)
        elif not executed and len(container.accesses) - starts >= MAX_ACCESSES:
            container.ignores_readers = True
            self._mark(_MARK_REMOVE, _OPEN_PERM, file, None)
        else:
            return False
        return True


class ContainerRoot:
    """Opens folders of a container without following symbolic links.

    The opened folders stay open until ``close`` is called. ``merged`` is the container's root folder on the host.
    """

    def __init__(self, merged: str) -> None:
        self._merged = merged
        self._descriptors: dict[str, int] = {}

    def parent(self, path: str) -> tuple[int, str]:
        """Open the parent folder of ``path``. Return the folder's descriptor and the last component of ``path``.

        Raises OSError if the folder doesn't exist or its path contains a symbolic link.
        """
        folder, _, name = path.strip("/").rpartition("/")
        return self._folder(folder), name or "."

    def _folder(self, path: str) -> int:
        if path not in self._descriptors:
            above, _, name = path.rpartition("/")
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            opened = os.open(name, flags, dir_fd=self._folder(above)) if path else os.open(self._merged, flags)
            self._descriptors[path] = opened
        return self._descriptors[path]

    def close(self) -> None:
        """Close all folders that were opened."""
        for folder in self._descriptors.values():
            os.close(folder)
        self._descriptors.clear()


# ---- reading a held process ----


def file_access_of(
    pid: int, status: dict[str, str], path: str, container: WatchedContainer, *, executed: bool
) -> FileAccess:
    """Return the record of a held process's access to the watched file ``path``.

    The record contains details from /proc about the process. ``status`` contains entries of the process's
    /proc/PID/status. ``executed`` is true if the process opened the file to execute it.
    """
    limits = _limits(pid)
    usual_limits, usual_filters = container.baseline
    argv, program = _split(_text(pid, "cmdline")), _link(pid, "exe")
    return FileAccess(
        at_s=time.monotonic(),
        path=path,
        started=executed or _interprets(program, argv, path),
        process=pid,
        parent=int(status.get("PPid", 0)),
        argv=tuple(word[:MAX_CHARACTERS] for word in argv[:MAX_ARGUMENTS]),
        program=program,
        cwd=_link(pid, "cwd"),
        uid=int(status.get("Uid", 0)),
        environment=_environment(pid, container.likely),
        limits={name: value for name, value in limits.items() if value < usual_limits.get(name, value)},
        traced=status.get("TracerPid", "0") != "0",
        filters=max(0, int(status.get("Seccomp_filters", 0)) - usual_filters),
    )


def _interprets(program: str, argv: list[str], path: str) -> bool:
    """Return whether a process is an interpreter, such as bash or Python, that runs the file ``path`` as its script."""
    options = list(takewhile(lambda word: word.startswith(("-", "+")), argv[1:]))
    given = "" if "-c" in options else next(iter(argv[len(options) + 1 :]), "")
    if basename(program).endswith("sh") and "-n" in options and "+n" not in options:
        return False  # a shell with -n checks the syntax and runs nothing
    return bool(INTERPRETER.fullmatch(basename(program))) and basename(given) == basename(path)


def script_words(contents: Iterable[bytes]) -> frozenset[str]:
    """Return all words in the scripts among ``contents``, including the names of the commands that the scripts call.

    ``contents`` are the contents of files. A file that starts with ``#!`` is a script.
    """
    scripts = (content for content in contents if content.startswith(b"#!"))
    return frozenset(word for script in scripts for word in re.findall(r"[\w.-]+", script.decode(errors="replace")))


def _environment(pid: int, likely: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Return the variables of a process's environment that can change what a script does.

    These are startup variables, such as PATH, and exported shell functions. If there are very many functions, some are
    omitted. ``likely`` contains the words of the watched scripts. Functions with these names are always included.
    """
    text = _text(pid, "environ")
    return kept_variables(text, likely) if len(text) <= CACHED_CHARACTERS else kept_variables.__wrapped__(text, likely)


@lru_cache(maxsize=100)  # most processes of most containers have the same environment
def kept_variables(text: str, likely: frozenset[str] = frozenset()) -> tuple[tuple[str, str], ...]:
    """Return the startup variables and exported shell functions of an environment, in their original order.

    ``text`` is the content of /proc/PID/environ. A startup variable, such as PATH, affects a shell, Python or the
    dynamic loader before the first line of a script runs. If a name occurs several times, the first and last
    occurrences are included, because programs differ in which one they use.

    ``likely`` contains the names of commands that a script may call. Functions with these names or with the name of a
    shell builtin are always included. At most ``MAX_FUNCTIONS`` other functions are included, half of them from the
    beginning and half from the end. Names and values are cut to ``MAX_CHARACTERS``.
    """
    pairs = [(name, value) for name, _, value in (word.partition("=") for word in _split(text))]
    variables = [(at, name) for at, (name, _) in enumerate(pairs) if _STARTUP_VARIABLE.fullmatch(name)]
    functions = [(at, name) for at, (name, _) in enumerate(pairs) if _EXPORTED_FUNCTION.fullmatch(name)]
    kept = sorted({*_first_and_last(variables), *_first_and_last(_bounded(functions, likely))})
    return tuple((name[:MAX_CHARACTERS], value[:MAX_CHARACTERS]) for name, value in (pairs[at] for at in kept))


def _first_and_last(found: list[tuple[int, str]]) -> set[int]:
    """Return the positions of the first and the last occurrence of each name.

    ``found`` contains pairs of a position and the name at this position.
    """
    last = {name: at for at, name in found}
    first = {name: at for at, name in reversed(found)}
    return {*first.values(), *last.values()}


def _bounded(functions: list[tuple[int, str]], likely: frozenset[str]) -> list[tuple[int, str]]:
    """Shorten a list of functions to ``MAX_FUNCTIONS`` by omitting functions in the middle.

    ``functions`` contains pairs of a position and a name. ``likely`` contains the names of commands that a script may
    call. A function is always included and isn't counted if its name is one of these or that of a shell builtin. This
    rule prevents an agent from hiding such a function among many others.
    """
    called = {name: _EXPORTED_FUNCTION.sub(r"\1", name) for _, name in functions}
    always = {name for name, word in called.items() if word in likely or _BUILTIN.fullmatch(word)}
    names = [name for name in dict.fromkeys(name for _, name in functions) if name not in always]
    if len(names) <= MAX_FUNCTIONS:
        return functions
    half = MAX_FUNCTIONS // 2
    last_names = [name for name in dict.fromkeys(name for _, name in reversed(functions)) if name not in always]
    kept = {*always, *names[:half], *last_names[:half]}
    return [(at, name) for at, name in functions if name in kept]


def _split(text: str) -> list[str]:
    return text.rstrip("\0").split("\0")


def _status(pid: int) -> dict[str, str]:
    """Return a process's parent, user, tracer and number of system call filters from /proc.

    The keys are those of /proc/PID/status. The dictionary is empty if the process has ended.
    """
    return dict(_STATUS_LINE.findall(_text(pid, "status")))


def _limits(pid: int) -> dict[str, int]:
    """Return a process's soft resource limits by name, in the kernel's units. Resources without a limit are omitted."""
    return dict(_parse_limits(_text(pid, "limits")))


@lru_cache(maxsize=100)  # most processes have the same limits
def _parse_limits(text: str) -> tuple[tuple[str, int], ...]:
    return tuple((_LIMITS[name], int(soft)) for name, soft in _SOFT_LIMIT.findall(text))


def _text(pid: int, name: str) -> str:
    """Return the text of the file ``name`` in the folder /proc/PID, or "" if the process has ended."""
    try:
        return text_of(f"/proc/{pid}/{name}")
    except OSError:
        return ""


def _link(pid: int, name: str) -> str:
    try:
        return os.fsencode(os.readlink(f"/proc/{pid}/{name}")).decode(errors="backslashreplace")
    except OSError:
        return ""
