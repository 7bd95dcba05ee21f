"""Detects when the host starves a container of CPU time.

Periods of starvation don't count toward the kill switch's time limit. The data is read from the host's /proc and from
the container's control group. A container counts as not starved if this data can't be read.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field

from harness.sandbox.observe.procfs import text_of

MOUNTS = "/sys/fs/cgroup"
FULL_USE = 0.8  # a container that used this fraction of its CPU limit is short of CPU by its own doing
WAITING_STATES = "RD"  # process states: running or ready to run; waiting for the disk


@dataclass
class CpuStarvation:
    """Measures one container's CPU use, to detect when the host starves the container of CPU time.

    ``first`` is the pid of the container's first process. ``cpus`` is the container's CPU limit, as a number of CPUs.
    """

    first: int
    cpus: float
    _counter: str | None = field(init=False)  # the control group's file that counts its CPU time
    _used_s: float | None = field(init=False)
    _measured_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._counter = _counter_of(self.first)
        self._used_s = _used_s(self._counter)

    def is_starved(self) -> bool:
        """Return whether the host has starved the container of CPU time since the last call.

        The container counts as starved if it used clearly less CPU time than its limit allows, although one of its
        processes is now ready to run or waiting for the disk.
        """
        used_before, measured_before = self._used_s, self._measured_at
        self._used_s, self._measured_at = _used_s(self._counter), time.monotonic()
        if used_before is None or self._used_s is None:
            return False
        limit_s = self.cpus * (self._measured_at - measured_before)
        had_its_share = self._used_s - used_before >= FULL_USE * limit_s
        return not had_its_share and any(_state(pid) in WAITING_STATES for pid in _processes(self._counter))


def _counter_of(pid: int) -> str | None:
    """Return the path of the file that counts the CPU time of a process's control group.

    Returns None if there is no such file.
    """
    with suppress(OSError, ValueError):
        for line in text_of(f"/proc/{pid}/cgroup").splitlines():
            _, controllers, group = line.split(":", 2)
            if "cpuacct" in controllers.split(","):
                return f"{MOUNTS}/{controllers}{group}/cpuacct.usage"
            if not controllers and os.path.exists(file := f"{MOUNTS}{group}/cpu.stat"):
                return file
    return None


def _used_s(counter: str | None) -> float | None:
    """Return the CPU time in seconds from the counter file at the path ``counter``.

    Returns None if ``counter`` is None or the file can't be read.
    """
    if counter is None:
        return None
    with suppress(OSError, ValueError, StopIteration):
        text = text_of(counter)
        if counter.endswith(".usage"):
            return int(text) / 1e9
        return int(next(each for each in text.splitlines() if each.startswith("usage_usec ")).split()[1]) / 1e6
    return None


def _processes(counter: str | None) -> list[str]:
    """Return the pids of all processes in a control group.

    ``counter`` is the path of the file that counts the group's CPU time. Returns an empty list if the pids can't be
    read.
    """
    with suppress(OSError):
        return text_of(f"{os.path.dirname(counter or '')}/cgroup.procs", records=True).split()
    return []


def _state(pid: str) -> str:
    with suppress(OSError, IndexError):
        # A process can put anything into its name, which stands in brackets before the state.
        return text_of(f"/proc/{pid}/stat").rpartition(") ")[2][0]
    return "X"
