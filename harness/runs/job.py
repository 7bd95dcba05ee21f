"""Prepares the engine and the image for a run, then runs the control trial and the trials that aren't stored yet."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agents.budget import Budget
from harness.agents.player import Player, Say
from harness.errors import LabError
from harness.process.gc_tuning import collect_garbage_rarely
from harness.process.logs import logged_to
from harness.runs.control_trial import control_key, run_control
from harness.runs.live_transcript import stored_as_said
from harness.runs.machine import image_request
from harness.runs.queue import StopPolicy, StoredQueue, begin_run, charge_earlier_spending
from harness.runs.schedule import run_trials
from harness.runs.trial import Lab
from harness.sandbox.docker.connect import OWN_ENGINE
from harness.sandbox.docker.engine import Engine
from harness.sandbox.docker.recovery import Recovery
from harness.sandbox.docker.setup.local_engine import log_rotation
from harness.sandbox.protocol import ImageRequest
from harness.sandbox.versions import Versions
from harness.session.events import EventStream
from harness.store.records import RunSpec
from harness.store.store import Store
from harness.store.summary import Summary, summarise
from harness.terminal.progress import RunProgress
from harness.terminal.text import print_note
from harness.toolserver.app import SessionRegistry
from harness.toolserver.server import tool_server

_log = logging.getLogger(__name__)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of running a run's missing trials in this process.

    ``summary`` covers all stored trials of the run, but its ``seconds`` covers only this process. ``interrupted`` is
    True if a signal stopped the trials. ``stopped`` is a sentence that describes the error or limit that ended the run
    early; it is None if there was no such error or limit. ``elsewhere`` is the number of trials that other processes
    are running, or 0 if this process ended early.
    """

    run: RunSpec
    summary: Summary
    interrupted: bool = False
    stopped: str | None = None
    elsewhere: int = 0


async def run_missing_trials(plan: RunSpec, player: Player, runs_dir: Path, request: dict[str, Any]) -> RunResult:
    """Run the trials of ``plan`` that aren't stored yet, and return the run's summary and how the run ended.

    ``plan`` is the specification of the run. ``player`` plays the agent in the trials. ``request`` is the user's
    request as a JSON object. It is stored with a new run so that the run can be resumed later.
    """
    began = time.monotonic()
    collect_garbage_rarely()
    with stoppable(), Store(runs_dir) as store, logged_to(runs_dir), Engine.connected(print_note) as engine:
        _log.info("run %s: %s, %d trials, task %s", plan.run_id, plan.model, plan.n, plan.task)
        image, versions = await engine.prepare(image_request(plan))
        fresh = plan.model_copy(update={"image": image.tag, "simulated": player.simulated})
        progress, events = RunProgress(fresh), EventStream()
        stop_policy = StopPolicy(player.budget or Budget())
        with progress.shown(), events.heard_by(progress.hear, kinds=progress.HEARD):
            async with opened_lab(
                engine, image_request(plan), image.tag, player, say=progress.say, events=events
            ) as lab:
                await _control(fresh, versions, lab, store)
                run = begin_run(store, fresh, image.model_dump(), versions, request)
                charge_earlier_spending(stop_policy.budget, store, run)
                queue = StoredQueue(run, store, events, stop_policy)
                async with cleared_up(queue, engine):
                    with stored_as_said(runs_dir, run.run_id, events):
                        trials = asyncio.create_task(run_trials(run, lab, queue))
                        interrupted, failure = await _until_done_or_interrupted(trials)
        summary = summary_of(runs_dir, run.run_id, time.monotonic() - began)
        _log.info("run %s: %d of %d trials finished", run.run_id, summary.n, run.n)
        stopped = stop_policy.reason if summary.n < run.n or stop_policy.failed else None
        left_to_others = 0 if interrupted or failure or stopped else queue.elsewhere
        return RunResult(run, summary, interrupted, failure or stopped, left_to_others)


@asynccontextmanager
async def opened_lab(
    engine: Engine, image: ImageRequest, tag: str, player: Player, *, say: Say, events: EventStream
) -> AsyncIterator[Lab]:
    """Start the tool server and yield the ``Lab`` that all trials of a run share.

    ``image`` is the request for the run's image, and ``tag`` is the tag of the built image. If the image is removed
    during the run, it is built again. ``say`` prints a line for the user, and ``events`` passes what happens in the
    trials to the run's listeners. The engine's log is rotated while the ``with`` block runs.
    """
    sessions, recovery = SessionRegistry(), Recovery(engine, image, tag)
    server = tool_server(sessions, outside=player.outside)
    async with log_rotation(OWN_ENGINE.log), server as serving:
        yield Lab(engine.backend, sessions, serving, player, say, recovery, events)


@asynccontextmanager
async def cleared_up(queue: StoredQueue, engine: Engine) -> AsyncIterator[None]:
    """Clean up after a run when the ``with`` block ends.

    The remaining containers of the run are removed. Unfinished trials that this process reserved become free for other
    processes.
    """
    try:
        yield
    finally:
        queue.close()
        await engine.clear(queue.run.run_id)


@contextmanager
def stoppable() -> Iterator[None]:
    """On SIGTERM or SIGHUP, cancel the ``with`` block, let it clean up, and then raise KeyboardInterrupt."""
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
    """Run and store the control trial, unless a passed control trial with the same key is already stored.

    Raises MechanismError if the kill switch fails the control trial, and SandboxError if the lab or its engine fails.
    """
    key = control_key(run, versions)
    if store.control(key) is None:
        store.add_control(key, await run_control(run, lab))


async def _until_done_or_interrupted(trials: asyncio.Task[None]) -> tuple[bool, str | None]:
    """Wait until the trials end, or until SIGINT, SIGTERM or SIGHUP cancels them.

    Returns the tuple (cancelled, error). ``cancelled`` is True if the trials were cancelled, and False if they ended by
    themselves. ``error`` is the message of the LabError that ended the trials, or None if there was no LabError.
    """
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
    """Return a summary of the stored trials of a run.

    ``seconds`` is the duration that the summary reports.
    """
    with Store(runs_dir, create=False) as store:
        return summarise(store.rows(run_id)).model_copy(update={"seconds": round(seconds, 1)})
