"""Which program makes the containers of the lab's own engine: crun where it can work, else the engine's own runc.

crun is written in C and starts a container for a third of what runc takes. It refuses a host on which some controllers
of control groups are of version 1 and others are left to version 2; there, the ones that are left get a hierarchy of
version 1 too, as Debian's cgroupfs-mount would have given them.
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
    """What dockerd is told of its runtime: nothing where it keeps its own."""
    program = find(NAME)
    if not program:
        return ()
    for controller in split_off(mounts.read_text()):
        _mount(controller)
    if split_off(mounts.read_text()):
        return ()
    return f"--add-runtime={NAME}={program}", f"--default-runtime={NAME}"


def split_off(mounts: str, read: Callable[[Path], str] = Path.read_text) -> tuple[str, ...]:
    """The controllers that version 2 has on a host where others are of version 1, by what /proc/mounts says."""
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
