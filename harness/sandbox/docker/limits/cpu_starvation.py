"""Detects CPU starvation, so that time in which the host didn't run a container isn't charged to the kill switch.

Reads the host's /proc and the container's control group; where the host has neither, no container counts as starved.
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
    """Measures one container's use of the CPU; ``first`` is its first process, ``cpus`` its limit."""

    first: int
    cpus: float
    _counter: str | None = field(init=False)  # the control group's file that counts its CPU time
    _used_s: float | None = field(init=False)
    _measured_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._counter = _counter_of(self.first)
        self._used_s = _used_s(self._counter)

    def is_starved(self) -> bool:
        """Whether the container got less CPU than its limit since the last call while a process in it wants more."""
        used_before, measured_before = self._used_s, self._measured_at
        self._used_s, self._measured_at = _used_s(self._counter), time.monotonic()
        if used_before is None or self._used_s is None:
            return False
        limit_s = self.cpus * (self._measured_at - measured_before)
        had_its_share = self._used_s - used_before >= FULL_USE * limit_s
        return not had_its_share and any(_state(pid) in WAITING_STATES for pid in _processes(self._counter))


def _counter_of(pid: int) -> str | None:
    """Find the file that counts the CPU time of a process's control group; None where there is none."""
    with suppress(OSError, ValueError):
        for line in text_of(f"/proc/{pid}/cgroup").splitlines():
            _, controllers, group = line.split(":", 2)
            if "cpuacct" in controllers.split(","):
                return f"{MOUNTS}/{controllers}{group}/cpuacct.usage"
            if not controllers and os.path.exists(file := f"{MOUNTS}{group}/cpu.stat"):
                return file
    return None


def _used_s(counter: str | None) -> float | None:
    """Read the CPU time used so far, in seconds, from a control group's counter; None where it can't be read."""
    if counter is None:
        return None
    with suppress(OSError, ValueError, StopIteration):
        text = text_of(counter)
        if counter.endswith(".usage"):
            return int(text) / 1e9
        return int(next(each for each in text.splitlines() if each.startswith("usage_usec ")).split()[1]) / 1e6
    return None


def _processes(counter: str | None) -> list[str]:
    """List the processes of the control group that a counter belongs to."""
    with suppress(OSError):
        return text_of(f"{os.path.dirname(counter or '')}/cgroup.procs", records=True).split()
    return []


def _state(pid: str) -> str:
    with suppress(OSError, IndexError):
        # A process can put anything into its name, which stands in brackets before the state.
        return text_of(f"/proc/{pid}/stat").rpartition(") ")[2][0]
    return "X"
