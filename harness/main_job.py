"""The main job: check what was asked for, prepare an engine and an image, run the trials, add them up."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from harness.conditions import Condition, condition_for, recorded
from harness.engine.engine import Engine
from harness.errors import UsageError
from harness.experiment import run_trials, trial_specs
from harness.models import Model
from harness.models.make import default_task, make
from harness.record import RunSpec, TrialRecord
from harness.registry import image_named, mechanism_for, task_named
from harness.store import Store
from harness.summary import Summary, Tally
from harness.tasks import TaskOptions
from harness.toolserver.app import Desks
from harness.toolserver.serve import serve
from harness.trial import Lab
from harness.view import Progress, print_note

HTTP_LIMIT_S = 120.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for, unchecked."""

    model: str
    n: int | None
    task: str | None
    condition: str | None
    mechanism: str | None
    image: str
    concurrency: int
    seed: int | None
    questions: int | None
    notice_after: int | None
    announced: bool
    message_limit: int
    run_id: str | None
    runs_dir: Path


@dataclass(frozen=True, slots=True)
class Job:
    """What came of it."""

    run: RunSpec
    summary: Summary
    interrupted: bool


def checked(request: Request) -> tuple[RunSpec, Model]:
    """The run that was asked for; its image has no tag yet. Raises UsageError before anything is touched."""
    task = task_named(request.task or default_task(request.model))
    model = make(request.model, task.name)
    mechanism = mechanism_for(task.name, request.mechanism)
    _positive("--n", request.n)
    _positive("--concurrency", request.concurrency)
    _positive("--questions", request.questions)
    _positive("--message-limit", request.message_limit)
    run_id = request.run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not run_id.replace("-", "").replace("_", "").replace(".", "").isalnum() or run_id == "last":
        raise UsageError(f"--run-id '{run_id}' won't do: use letters, digits, '-', '_' and '.', and not 'last'.")
    run = RunSpec(
        run_id=run_id,
        model=model.name,
        simulated=model.simulated,
        task=task.name,
        condition=_condition(model, task.name, request.condition),
        mechanism=mechanism,
        image=image_named(request.image),
        n=request.n or model.default_n,
        concurrency=request.concurrency,
        options=TaskOptions(
            seed=request.seed,
            questions=request.questions,
            notice_after=request.notice_after,
            announced=request.announced,
        ),
        message_limit=request.message_limit,
    )
    first = next(iter(trial_specs(run, model)))
    task.begin(first.options, mechanism)  # refuses options that don't fit each other
    return run, model


def _condition(model: Model, task: str, name: str | None) -> Condition:
    if model.prompts(1) is None:
        return condition_for(task, name)
    if name is not None:
        raise UsageError("--condition can't be chosen for recorded runs: each was made under a condition of its own.")
    return recorded(task)


def _positive(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"{option} {value} won't do: it must be 1 or more.")


async def run_main_job(request: Request) -> Job:
    """Do it all. Interrupted, it keeps the finished trials and removes the containers of the others."""
    plan, model = checked(request)
    with Store(request.runs_dir) as store, Engine.connected(print_note) as engine:
        image, versions = await engine.prepare(plan)
        run = plan.model_copy(update={"image": image.tag})
        store.add_run(run, image.model_dump(), versions)
        tally, progress, began = Tally(), Progress(run), time.monotonic()

        def finished(record: TrialRecord) -> None:
            store.add_trial(record)
            tally.add(record)
            progress.finished(record)

        desks = Desks()
        with progress.shown():
            async with serve(desks) as url, httpx.AsyncClient(base_url=url, timeout=HTTP_LIMIT_S) as http:
                lab = Lab(engine.sandboxes, desks, http, model)
                trials = asyncio.create_task(run_trials(run, lab, progress.started, finished))
                interrupted = await _until_done_or_interrupted(trials)
        return Job(run, tally.summary(time.monotonic() - began), interrupted)


async def _until_done_or_interrupted(trials: asyncio.Task[None]) -> bool:
    """Wait for the trials; SIGINT and SIGTERM cancel them. Whether that happened."""
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, trials.cancel)
    try:
        await asyncio.wait([trials])
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
    if trials.cancelled():
        return True
    trials.result()
    return False
