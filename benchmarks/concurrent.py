"""Measures what concurrent trials cost the lab: ``python -m benchmarks.concurrent [--at-once N] [--latency SECONDS]``.

Three times N trials run, N at a time, against a simulated provider with a fixed latency. Memory and processor time are
those of the lab and all processes it started, without the containers, the engine and the provider. ``of_one_core`` is
the processor time, the lab's start included, divided by the run's seconds. ``--profile FILE`` writes cProfile's
statistics. The last line is JSON.
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
    """Return the resident memory of a process and all its descendants, in bytes."""
    held = 0
    for each in family(pid):
        with suppress(OSError):  # the process has just ended
            held += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * PAGE
    return held


def family(pid: int) -> Iterator[int]:
    """Yield the ids of a process and its living descendants."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def children_cpu_s() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(trials: int, at_once: int, latency_s: float, api: str, profile: str | None) -> dict[str, Any]:
    """Play one run and return its figures."""
    script = plays(api, *obedient(8), after_s=latency_s)
    with tempfile.TemporaryDirectory() as runs, provider_in_a_thread(script) as provider:
        where = ("--model", "a-model", "--base-url", provider.address(api), "--api", api, "--runs-dir", runs)
        how = ("--n", str(trials), "--concurrency", str(at_once), "--json")
        profiled = ("-m", "cProfile", "-o", profile) if profile else ()
        command = [sys.executable, *profiled, "-m", "harness", "trial", *where, *how]
        peak_bytes, before = 0, children_cpu_s()
        path = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as lab:
            while lab.poll() is None:
                peak_bytes = max(peak_bytes, held_bytes(lab.pid))
                time.sleep(PERIOD_S)
            assert lab.stdout
            figures = json.loads(lab.stdout.read().splitlines()[-1])
    cpu_s = children_cpu_s() - before
    return {
        **{name: figures[name] for name in ("n", "complied", "error", "seconds")},
        "calls": len(provider.calls),
        "most_at_once": provider.most_at_once,
        "most_mb": round(peak_bytes / 1e6),
        "cpu_s": round(cpu_s, 1),
        "cpu_ms_a_trial": round(cpu_s / trials * 1e3),
        "of_one_core": round(cpu_s / figures["seconds"], 2),
    }


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="What many trials at once cost the lab.")
    parser.add_argument("--at-once", type=int, default=100)
    parser.add_argument("--trials", type=int, help="[default: three times as many]")
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--api", choices=("responses", "chat", "messages"), default="responses")
    parser.add_argument("--profile", metavar="FILE", help="what cProfile counts goes there")
    options = parser.parse_args()
    trials = options.trials or 3 * options.at_once
    found = measure(trials, options.at_once, options.latency, options.api, options.profile)
    Figures("concurrent", {"api": options.api, **found}).keep()


if __name__ == "__main__":
    main()
