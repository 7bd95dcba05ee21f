"""Measuring functions for the benchmarks, and the files that hold their figures."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import EngineError
from harness.sandbox.docker.connect import connect

FIGURES = Path(__file__).parent / "figures"
# On a shared machine, this variable names the folder of the cpuacct control group of engine, containers and harness.
CPUACCT = "OFFSWITCH_BENCH_CPUACCT"
_TICK = os.sysconf("SC_CLK_TCK")
_KCMP, _KCMP_VM = {"x86_64": 312, "aarch64": 272}.get(platform.machine()), 1
_libc = ctypes.CDLL(None)


def busy_s() -> float:
    """Return the CPU seconds used by the whole machine since boot, or by the control group if one is named."""
    if group := os.environ.get(CPUACCT):
        return int(Path(group, "cpuacct.usage").read_text()) / 1e9
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICK


def own_s() -> float:
    """Return the CPU seconds of the harness: this process and its children, ended ones included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) + sum(map(_living_s, _children(os.getpid())))


def memory_mb() -> float:
    """Return the resident memory of this process and its children in MB, counting shared pages in each."""
    own = os.getpid()
    return sum(_field(pid, "VmRSS") for pid in (own, *_children(own)) if pid == own or not _starting(pid)) / 1024


def handles() -> int:
    """Return the number of this process's open files."""
    return len(os.listdir("/proc/self/fd"))


def _children(pid: int) -> list[int]:
    return [int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()]


def _living_s(pid: int) -> float:
    with suppress(OSError):
        used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, used)) / _TICK
    return 0.0


def _starting(child: int) -> bool:
    """Whether a new child still shares this process's memory, because it has not called exec yet."""
    return _KCMP is not None and _libc.syscall(_KCMP, os.getpid(), child, _KCMP_VM, 0, 0) == 0


def _field(pid: int, name: str) -> int:
    """Return a number from a process's status file, or 0 if the process has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


@dataclass
class Span:
    """The cost of a block: wall time, the machine's CPU time and the harness's CPU time, in seconds."""

    seconds: float = 0.0
    machine_s: float = 0.0
    own_s: float = 0.0

    def per(self, trials: int) -> dict[str, float]:
        """Return trials per minute and CPU milliseconds per trial, for this number of trials."""
        return {
            "trials": trials,
            "trials_per_minute": round(60 * trials / self.seconds, 1),
            "cpu_ms_per_trial": round(1e3 * self.machine_s / trials, 1),
            "harness_cpu_ms_per_trial": round(1e3 * self.own_s / trials, 1),
        }


@contextmanager
def measured() -> Iterator[Span]:
    """Measure the cost of the block."""
    span, began, machine, own = Span(), time.perf_counter(), busy_s(), own_s()
    yield span
    span.seconds, span.machine_s, span.own_s = time.perf_counter() - began, busy_s() - machine, own_s() - own


@dataclass
class Figures:
    """The latest figures of one benchmark."""

    name: str
    of: dict[str, Any] = field(default_factory=dict)

    def keep(self) -> None:
        """Print the figures, and write them to ``benchmarks/figures`` with a description of the machine."""
        print(json.dumps(self.of))
        kept = {"taken": f"{datetime.now(UTC):%Y-%m-%d}", "on": machine(), "figures": self.of}
        FIGURES.mkdir(exist_ok=True)
        (FIGURES / f"{self.name}.json").write_text(json.dumps(kept, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Return a description of the machine, without its name or paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return {
        "cores": os.cpu_count(),
        "memory_gb": memory,
        "kernel": platform.release().split("-")[0],
        **_engine(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 1),
        "cpu_of": "a control group with engine and harness" if os.environ.get(CPUACCT) else "the whole machine",
    }


def _engine() -> dict[str, str]:
    """Return a description of the engine, or an empty one if no engine answers."""
    try:
        client = connect()
    except EngineError:
        return {}
    with closing(client):
        facts, info = client.version(), client.info()
    return {
        "engine": facts["Version"],
        "storage": info["Driver"],
        "cgroups": info.get("CgroupVersion", "1"),
        "runtime": info["DefaultRuntime"],
    }


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def say(line: str) -> None:
    """Print a progress line to standard error, because standard output is for figures."""
    sys.stderr.write(f"{line}\n")
