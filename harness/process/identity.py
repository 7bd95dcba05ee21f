"""Process identity: containers, claims and temporary folders are labelled with the process that owns them.

A killed process can't clean up. Others recognise what it left by checking whether the owner is still alive.
"""

from __future__ import annotations

import os
import socket
import tempfile
from functools import cache
from pathlib import Path

PREFIX = "offswitch-"
_DEAD = {"Z", "X"}  # states of a process that has ended but whose parent hasn't waited for it yet


def _start_time(pid: int) -> str | None:
    """Return when a process was started, in clock ticks since boot, or None if no such process runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in _DEAD else fields[18]


def this_process() -> str:
    """Return this process's identity as "host:pid:start time"; the start time distinguishes reused pids."""
    return _own_identity(os.getpid())


@cache
def _own_identity(pid: int) -> str:  # by pid, because a forked child isn't its parent
    return identity_of(pid)


def identity_of(pid: int) -> str:
    """Return the identity of a running process of this host."""
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}"


def is_gone(owner: str) -> bool:
    """Whether the owner process has ended. A process of another host can't be checked, so it counts as alive."""
    host, pid, started = owner.rsplit(":", 2)
    return host == socket.gethostname() and _start_time(int(pid)) != started


def is_elsewhere(owner: str) -> bool:
    """Whether the owner process belongs to another host."""
    return owner.rsplit(":", 2)[0] != socket.gethostname()


def temporary_prefix(kind: str = "") -> str:
    """Return the name prefix of this process's temporary folders."""
    return f"{PREFIX}{kind}{os.getpid()}-{_start_time(os.getpid())}-"


def left_folders(folder: Path | None = None) -> list[Path]:
    """Return this user's temporary folders whose owner process has ended; by default those in the system's folder."""
    found = sorted((folder or Path(tempfile.gettempdir())).glob(f"{PREFIX}*-*-*"))
    return [each for each in found if _belongs_to_user(each) and _owner_has_ended(each.name)]


def _belongs_to_user(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def _owner_has_ended(name: str) -> bool:
    *_, pid, started, _random = name.split("-")
    return pid.isdigit() and started.isdigit() and _start_time(int(pid)) != started
