"""Chooses the container runtime of the lab's own Docker engine, which is crun if it works here, otherwise runc.

runc is the engine's default, but crun starts a container in a third of the time. crun refuses a host on which some
control group controllers are of version 1 and others of version 2. On such a host, the controllers of version 2 are
mounted as version 1 too, as Debian's package cgroupfs-mount does.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.process.environment import without_keys

CGROUPS = Path("/sys/fs/cgroup")
MOUNTS = Path("/proc/mounts")
NAME = "crun"


def runtime_flags(find: Callable[[str], str | None], mounts: Path = MOUNTS) -> tuple[str, ...]:
    """Return the dockerd options that select crun as container runtime; empty if crun can't be used on this host.

    Control group controllers are mounted first if crun needs that. ``find`` returns the path of a program, or None if
    the program isn't found.
    """
    program = find(NAME)
    if not program:
        return ()
    for controller in split_off(mounts.read_text()):
        _mount(controller)
    if split_off(mounts.read_text()):
        return ()
    return f"--add-runtime={NAME}={program}", f"--default-runtime={NAME}"


def split_off(mounts: str, read: Callable[[Path], str] = Path.read_text) -> tuple[str, ...]:
    """Return the control group controllers of version 2 if the host has controllers of both versions, otherwise ().

    ``mounts`` is the text of /proc/mounts. ``read`` reads a text file.
    """
    places = {kind: Path(place) for _, place, kind, *_ in (line.split() for line in mounts.splitlines())}
    if "cgroup" not in places or "cgroup2" not in places:
        return ()
    with suppress(OSError):
        return tuple(read(places["cgroup2"] / "cgroup.controllers").split())
    return ()


def _mount(controller: str) -> None:
    place = CGROUPS / controller
    with suppress(OSError):
        place.mkdir(exist_ok=True)
        command = ("mount", "-t", "cgroup", "-o", controller, "cgroup", str(place))
        subprocess.run(command, env=without_keys(), capture_output=True, check=False)
