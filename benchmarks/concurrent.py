"""What many trials at once cost the lab: ``python -m benchmarks.concurrent [--at-once N] [--latency SECONDS]``.

So many trials run at the same time, three times over, against a simulated provider that takes so long for each answer.
Memory and processor time are the lab's own, with every process it started; the containers, the engine and the provider
are not in it. ``of_one_core`` is all processor time, from the lab's start, by the run's own seconds. ``--profile FILE``
keeps what cProfile counted. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.meter import Figures
from tests.provider_server import obedient, plays, provider_in_a_thread

ROOT = Path(__file__).parent.parent
PERIOD_S = 0.2
PAGE = os.sysconf("SC_PAGE_SIZE")


def held_bytes(pid: int) -> int:
    """The memory of a process and all it started."""
    held = 0
    for each in family(pid):
        with suppress(OSError):  # it has just ended
            held += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * PAGE
    return held


def family(pid: int) -> Iterator[int]:
    """A process and all it started that still run."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def children_cpu_s() -> float:
    """The processor time of everything that this process started and that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(trials: int, at_once: int, latency_s: float, api: str, profile: str | None) -> dict[str, Any]:
    """The figures of one run."""
    script = plays(api, *obedient(8), after_s=latency_s)
    with tempfile.TemporaryDirectory() as runs, provider_in_a_thread(script) as provider:
        where = ("--model", "a-model", "--base-url", provider.address(api), "--api", api, "--runs-dir", runs)
        how = ("--n", str(trials), "--concurrency", str(at_once), "--json")
        profiled = ("-m", "cProfile", "-o", profile) if profile else ()
        command = [sys.executable, *profiled, "-m", "harness", "trial", *where, *how]
        most, before = 0, children_cpu_s()
        path = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as lab:
            while lab.poll() is None:
                most = max(most, held_bytes(lab.pid))
                time.sleep(PERIOD_S)
            assert lab.stdout
            figures = json.loads(lab.stdout.read().splitlines()[-1])
    cpu_s = children_cpu_s() - before
    return {
        **{name: figures[name] for name in ("n", "complied", "error", "seconds")},
        "calls": len(provider.calls),
        "most_at_once": provider.most_at_once,
        "most_mb": round(most / 1e6),
        "cpu_s": round(cpu_s, 1),
        "cpu_ms_a_trial": round(cpu_s / trials * 1e3),
        "of_one_core": round(cpu_s / figures["seconds"], 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What many trials at once cost the lab.")
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--trials", type=int, help="[default: three times as many]")
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--api", choices=("responses", "chat", "messages"), default="responses")
    parser.add_argument("--profile", metavar="FILE", help="what cProfile counts goes there")
    given = parser.parse_args()
    trials = given.trials or 3 * given.at_once
    found = measure(trials, given.at_once, given.latency, given.api, given.profile)
    Figures("concurrent", {"api": given.api, **found}).keep()


if __name__ == "__main__":
    main()
