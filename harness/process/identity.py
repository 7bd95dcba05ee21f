"""Whose a thing is: containers, claims and temporary folders bear the process that made them.

A process that was killed can't tidy up. What it left is known by its owner being gone, and is taken over or removed.
"""

from __future__ import annotations

import os
import socket
import tempfile
from functools import cache
from pathlib import Path

PREFIX = "offswitch-"
_DEAD = {"Z", "X"}  # killed, and not yet asked about by its parent


def _birth(pid: int) -> str | None:
    """When a process was started, in ticks since boot, or None when no such process runs."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in _DEAD else fields[18]


def this_process() -> str:
    """Host, pid and birth, so that a pid used again is not taken for this process."""
    return _named(os.getpid())


@cache
def _named(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{_birth(pid)}"


def is_gone(owner: str) -> bool:
    """Whether that process of this host no longer lives. One of another host can't be asked, and counts as alive."""
    host, pid, birth = owner.rsplit(":", 2)
    return host == socket.gethostname() and _birth(int(pid)) != birth


def is_elsewhere(owner: str) -> bool:
    """Whether that process is, or was, of another host."""
    return owner.rsplit(":", 2)[0] != socket.gethostname()


def temporary_prefix(kind: str = "") -> str:
    """How the name of a temporary folder of this process begins."""
    return f"{PREFIX}{kind}{os.getpid()}-{_birth(os.getpid())}-"


def left_folders(folder: Path | None = None) -> list[Path]:
    """The temporary folders of this user's that harness processes left which no longer live."""
    found = sorted((folder or Path(tempfile.gettempdir())).glob(f"{PREFIX}*-*-*"))
    return [each for each in found if _is_ours(each) and _left(each.name)]


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def _left(name: str) -> bool:
    *_, pid, birth, _random = name.split("-")
    return pid.isdigit() and birth.isdigit() and _birth(int(pid)) != birth
