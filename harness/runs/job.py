"""Running a run: an engine, an image, the control trial, then the trials that are missing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.runs.control_trial import control_key, run_control
from harness.sandbox.docker.connect import OURS
from harness.sandbox.docker.engine import Engine
from harness.sandbox.docker.recovery import Recovery
from harness.sandbox.docker.setup.local_engine import kept_short
from harness.errors import LabError
from harness.runs.schedule import run_trials
from harness.process.gc_tuning import collect_seldom
from harness.agents.providers.model import Budget, Live
from harness.agents.external import OwnAgent, Player
from harness.store.records import RunSpec, Versions
from harness.store.store import Store
from harness.store.summary import Summary, summarise
from harness.toolserver.app import Desks
from harness.toolserver.server import tool_server
from harness.runs.trial import Lab
from harness.terminal.view import Progress, print_note
from harness.runs.queue import Ending, StoredWork, begun, charge

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Job:
    """What came of it: the figures are of all the run's finished trials, ``seconds`` of this process.

    ``stopped`` says why no further trials were begun, if so; ``elsewhere`` counts those other processes have under way.
    """

    run: RunSpec
    summary: Summary
    interrupted: bool = False
    stopped: str | None = None
    elsewhere: int = 0


async def run_job(plan: RunSpec, model: Player, runs_dir: Path, request: dict[str, Any]) -> Job:
    """Run what is missing of a run. ``request`` is kept with a new one, to ask for it again by its name."""
    began = time.monotonic()
    collect_seldom()
    with stoppable(), Store(runs_dir) as store, Engine.connected(print_note) as engine:
        image, versions = await engine.prepare(plan)
        fresh = plan.model_copy(update={"image": image.tag, "simulated": model.simulated})
        progress, desks = Progress(fresh), Desks()
        ending = Ending(model.budget if isinstance(model, Live) else Budget())
        recovery = Recovery(engine, plan, image.tag)
        with progress.shown():
            async with kept_short(OURS.log), tool_server(desks, outside=isinstance(model, OwnAgent)) as server:
                lab = Lab(engine.sandboxes, desks, server, model, progress.say, recovery, progress.waits)
                await _control(fresh, versions, lab, store)
                run = begun(store, fresh, image.model_dump(), versions, request)
                charge(ending.budget, store, run)
                work = StoredWork(run, store, progress, ending)
                trials = asyncio.create_task(run_trials(run, lab, work))
                try:
                    interrupted, failure = await _until_done_or_interrupted(trials)
                finally:
                    work.close()
                    await engine.clear(run.run_id)
        summary = summary_of(runs_dir, run.run_id, time.monotonic() - began)
        stopped = ending.reason if summary.n < run.n or ending.failed else None
        left_to_others = 0 if interrupted or failure or stopped else work.elsewhere
        return Job(run, summary, interrupted, failure or stopped, left_to_others)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that a control trial's container isn't left, either."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in ENDING[1:]:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in ENDING[1:]:
            loop.remove_signal_handler(number)


async def _control(run: RunSpec, versions: Versions, lab: Lab, store: Store) -> None:
    """See that the kill switch works by itself, unless it was seen before. Raises MechanismError."""
    key = control_key(run, versions)
    if store.control(key) is None:
        store.add_control(key, await run_control(run, lab))


async def _until_done_or_interrupted(trials: asyncio.Task[None]) -> tuple[bool, str | None]:
    """Wait for the trials; SIGINT and SIGTERM cancel them. Whether that happened, and what the lab failed at if so."""
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, trials.cancel)
    try:
        await asyncio.wait([trials])
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
    if trials.cancelled():
        return True, None
    try:
        trials.result()
    except LabError as failure:
        return False, str(failure)
    return False, None


def summary_of(runs_dir: Path, run_id: str, seconds: float) -> Summary:
    """The figures of a run's finished trials, said to have taken so long."""
    with Store(runs_dir, create=False) as store:
        return summarise(store.digests(run_id)).model_copy(update={"seconds": round(seconds, 1)})
