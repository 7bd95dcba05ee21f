"""Measures what the file watcher adds to a tool call and a trial: ``python -m benchmarks.watcher [--trials N]``.

Watched and unwatched trials alternate in one process, so that other load affects both. An unwatched trial has no file
events, no held processes and no snapshots; everything else is the same. Figures are medians of wall time in
milliseconds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.meter import Figures
from harness.judging.evidence import StopReason
from harness.runs.machine import image_request
from harness.runs.request import RunRequest, check_request
from harness.sandbox.docker.engine import Engine
from harness.sandbox.protocol import MachineSpec
from harness.session.file_watcher import FileWatcher
from harness.session.session import Session
from harness.store.records import RunSpec
from harness.tasks.registry import task_named

CALLS = (("shell", "true"), ("shell", "cat shutdown.sh"), ("question", "./next_question"))
CALLS_A_TRIAL = 5


@dataclass
class Blind(FileWatcher):
    """A file watcher that takes no snapshots."""

    async def look(self, *_: Any, **__: Any) -> None:
        """Take no snapshot."""


class Unwatched(Session):
    """A session whose file watcher takes no snapshots."""

    async def begin(self, sandbox: Any) -> None:
        """Begin the session, and disable its file watcher."""
        await super().begin(sandbox)
        self._watcher = Blind(sandbox, ())


async def one_trial(engine: Engine, run: RunSpec, number: int, *, watched: bool) -> dict[str, float]:
    """Run one trial and return the duration of each call and of the whole trial in milliseconds."""
    task, took = task_named(run.task), {}
    session = (Session if watched else Unwatched)(task, run.mechanism, task.begin(run.options, run.mechanism))
    paths = tuple(path for path, _ in task.protected(run.mechanism)) if watched else ()
    spec = MachineSpec(
        image=run.image, run_id=run.run_id, trial=number, limits=run.limits, watched=paths, **task.agent.model_dump()
    )
    began = time.perf_counter()
    async with engine.backend.start(spec, session.answer) as sandbox:
        started = time.perf_counter()
        await session.begin(sandbox)
        for call in range(CALLS_A_TRIAL):
            kind, cmd = CALLS[call % len(CALLS)]
            before = time.perf_counter()
            await session.shell(f"call-{call}", cmd)
            took[f"{kind} {call}"] = (time.perf_counter() - before) * 1e3
        await session.evidence(StopReason.STOPPED)
        took["between start and removal"] = (time.perf_counter() - started) * 1e3
    took["whole trial"] = (time.perf_counter() - began) * 1e3
    return took


async def measure(trials: int) -> dict[str, dict[str, float]]:
    """Run ``trials`` watched and unwatched trials in alternation, and return the medians."""
    seen: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    run, _ = check_request(RunRequest(model="demo", n=1, concurrency=1))
    with Engine.connected(print) as engine:
        image, _ = await engine.prepare(image_request(run))
        run = run.model_copy(update={"image": image.tag})
        for number in range(trials * 2):
            watched = number % 2 == 0
            for name, took in (await one_trial(engine, run, number + 1, watched=watched)).items():
                seen[name.partition(" ")[0] if name[-1].isdigit() else name][watched].append(took)
    return {name: _figures(both) for name, both in seen.items()}


def _figures(both: dict[bool, list[float]]) -> dict[str, float]:
    watched, unwatched = statistics.median(both[True]), statistics.median(both[False])
    return {
        "unwatched_ms": round(unwatched, 2),
        "watched_ms": round(watched, 2),
        "added_ms": round(watched - unwatched, 2),
    }


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="What the watcher adds to a tool call and to a trial.")
    parser.add_argument("--trials", type=int, default=20, help="trials of each kind")
    figures = uvloop.run(measure(parser.parse_args().trials))
    for name, each in figures.items():
        print(f"{name:28} {each['unwatched_ms']:8.2f} -> {each['watched_ms']:8.2f} ms  (+{each['added_ms']:.2f})")
    Figures("watcher", figures).keep()


if __name__ == "__main__":
    main()
