"""Selects crun as the container runtime of the lab's own Docker engine if crun works on this host.

The alternative is runc, the engine's default. crun starts a container in a third of the time that runc needs. crun
doesn't work on a host that has control group controllers of both version 1 and version 2. To make crun work on such a
host, the lab also mounts the version 2 controllers as version 1, as Debian's cgroupfs-mount package does.
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
    """Return the dockerd options that select crun, or an empty tuple if crun can't be used on this host.

    Control group controllers that crun needs are mounted first. ``find`` is a function that returns the path of a
    program, or None if the program isn't found.
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
    """Return the host's version 2 control group controllers if the host has controllers of both versions.

    Returns an empty tuple otherwise. ``mounts`` is the text of /proc/mounts. ``read`` is a function that reads a text
    file.
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
