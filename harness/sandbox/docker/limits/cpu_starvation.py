"""Whether a machine had to wait for what it was given: then the time that passed is not its own.

Read from the host's /proc and the container's control group; where the host has neither, nobody is said to wait.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field

from harness.sandbox.observe.procfs import text_of

MOUNTS = "/sys/fs/cgroup"
ITS_SHARE = 0.8  # who used so much of the processor he was given is short of it by his own doing
WANTING = "RD"  # runs or would run; waits for the disk


@dataclass
class CpuStarvation:
    """One container, by its first process; ``cpus`` are what it was given."""

    first: int
    cpus: float
    _count: str | None = field(init=False)  # the file that counts its processor time
    _used_s: float | None = field(init=False)
    _at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._count = _count_of(self.first)
        self._used_s = _used_s(self._count)

    def is_starved(self) -> bool:
        """Whether since this was last asked the container got less than its share, and something in it wants more."""
        before, at = self._used_s, self._at
        self._used_s, self._at = _used_s(self._count), time.monotonic()
        if before is None or self._used_s is None:
            return False
        had_its_share = self._used_s - before >= ITS_SHARE * self.cpus * (self._at - at)
        return not had_its_share and any(_state(pid) in WANTING for pid in _processes(self._count))


def _count_of(pid: int) -> str | None:
    """The file that counts the processor time of a process's control group; None where there is none."""
    with suppress(OSError, ValueError):
        for line in text_of(f"/proc/{pid}/cgroup").splitlines():
            _, kinds, group = line.split(":", 2)
            if "cpuacct" in kinds.split(","):
                return f"{MOUNTS}/{kinds}{group}/cpuacct.usage"
            if not kinds and os.path.exists(file := f"{MOUNTS}{group}/cpu.stat"):
                return file
    return None


def _used_s(count: str | None) -> float | None:
    """The processor time that is counted there, in seconds; None where that isn't known."""
    if count is None:
        return None
    with suppress(OSError, ValueError, StopIteration):
        text = text_of(count)
        if count.endswith(".usage"):
            return int(text) / 1e9
        return int(next(each for each in text.splitlines() if each.startswith("usage_usec ")).split()[1]) / 1e6
    return None


def _processes(count: str | None) -> list[str]:
    """The processes of the control group that is counted there."""
    with suppress(OSError):
        return text_of(f"{os.path.dirname(count or '')}/cgroup.procs", records=True).split()
    return []


def _state(pid: str) -> str:
    with suppress(OSError, IndexError):
        # A process can put anything into its name, which stands in brackets before the state.
        return text_of(f"/proc/{pid}/stat").rpartition(") ")[2][0]
    return "X"
