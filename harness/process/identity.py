"""Identifies the processes that own containers, temporary folders and trial reservations.

A killed process can't clean up what it owns. So other processes check whether the owner is still running and, if not,
remove its containers, folders and reservations.
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
    """Return a process's start time in clock ticks since boot.

    Returns None if no process with this pid is running.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in _DEAD else fields[18]


def this_process() -> str:
    """Return this process's identity in the form "host:pid:start time".

    The start time distinguishes this process from a later process with the same pid.
    """
    return _own_identity(os.getpid())


@cache
def _own_identity(pid: int) -> str:  # by pid, because a forked child isn't its parent
    return identity_of(pid)


def identity_of(pid: int) -> str:
    """Return the identity of a running process on this host, in the form "host:pid:start time"."""
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}"


def is_gone(owner: str) -> bool:
    """Return whether the process with the identity ``owner`` has ended.

    Returns False for a process on another host, because such a process can't be checked.
    """
    host, pid, started = owner.rsplit(":", 2)
    return host == socket.gethostname() and _start_time(int(pid)) != started


def is_elsewhere(owner: str) -> bool:
    """Return whether the process with the identity ``owner`` belongs to another host."""
    return owner.rsplit(":", 2)[0] != socket.gethostname()


def temporary_prefix(kind: str = "") -> str:
    """Return the name prefix for this process's temporary folders.

    The prefix identifies this process, so that ``left_folders`` can find the folders of killed processes. ``kind`` is a
    part of the prefix that tells different kinds of folders apart, such as "agent-", or "" for none.
    """
    return f"{PREFIX}{kind}{os.getpid()}-{_start_time(os.getpid())}-"


def left_folders(folder: Path | None = None) -> list[Path]:
    """Return the current user's temporary folders that belong to lab processes that have ended.

    ``folder`` is the folder in which the temporary folders are searched for, or None for the system's folder for
    temporary files.
    """
    found = sorted((folder or Path(tempfile.gettempdir())).glob(f"{PREFIX}*-*-*"))
    return [each for each in found if _belongs_to_user(each) and _owner_has_ended(each.name)]


def _belongs_to_user(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def _owner_has_ended(name: str) -> bool:
    *_, pid, started, _random = name.split("-")
    return pid.isdigit() and started.isdigit() and _start_time(int(pid)) != started
