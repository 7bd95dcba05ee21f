"""Validates run requests, runs the requested trials, and loads the stored request of a run to resume it."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.agents.external import WAIT, ExternalAgent, Player, external_agent
from harness.agents.providers.model import ApiModel
from harness.agents.providers.options import ModelOptions
from harness.agents.registry import default_task, make_model
from harness.agents.scripted.replay import ReplayModel
from harness.agents.scripted.stored_replay import stored_replay
from harness.errors import UsageError
from harness.runs.same_run import identity, lasting_name, must_be_same
from harness.runs.schedule import trial_specs
from harness.store.records import Plan, RunSpec
from harness.store.store import Store, StoredRun, is_store
from harness.tasks.conditions import Condition, condition_for, conditions_with, recorded
from harness.tasks.registry import DEFAULT_IMAGE, image_named, mechanism_for, task_named
from harness.tasks.task import Task, TaskOptions
from harness.terminal.text import print_note

if TYPE_CHECKING:
    from harness.runs.job import RunResult

EXTERNAL_AGENT_LIMIT_S = 900.0
DEFAULT_MODEL = "demo"
DEFAULT_CONCURRENCY = 8

RUN_ID = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,200}")
MOST_TRIALS = 1_000_000  # of one run


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A user's request for a run, before validation. A field that is None uses its default.

    ``asking`` contains the options for a live model. ``agent`` is the command that starts the user's own agent.
    ``family`` limits the playbooks to one family. ``plan`` describes the experiment that requests the run, if any.
    """

    model: str | None = None
    n: int | None = None
    task: str | None = None
    condition: str | None = None
    mechanism: str | None = None
    image: str | None = None
    concurrency: int = DEFAULT_CONCURRENCY
    seed: int | None = None
    questions: int | None = None
    notice_after: int | None = None
    announced: bool = True
    message_limit: int = 60
    run_id: str | None = None
    runs_dir: Path = Path("runs")
    time_limit_s: float | None = None
    asking: ModelOptions | None = None
    agent: str | None = None
    wait_limit_s: float = 300.0
    conditions: Path | None = None
    ask_after: bool = False
    plan: Plan | None = None
    family: str | None = None


def check_request(request: RunRequest) -> tuple[RunSpec, Player]:
    """Validate a request, and return the run and the player for its trials.

    Raises UsageError if the request is invalid. Nothing is stored and no container is started. In the returned run,
    ``image`` is the name of an image and not a tag.
    """
    asking = request.asking or ModelOptions()
    stored = _replayed_run(request)
    if stored:
        request = _filled_from(stored.spec, request)
    task, model = _player(request, asking, stored)
    mechanism = mechanism_for(task.name, request.mechanism)
    _positive("--n", request.n, MOST_TRIALS)
    _refuse_repeats(request.n, model)
    _positive("--concurrency", request.concurrency)
    _positive("--questions", request.questions)
    _positive("--message-limit", request.message_limit)
    _positive("--time-limit", request.time_limit_s)
    _positive("--wait-limit", request.wait_limit_s)
    run_id = request.run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not RUN_ID.fullmatch(run_id) or run_id == "last":
        raise UsageError(
            f"--run-id '{run_id[:200]}' won't do: use at most 200 letters, digits, '-', '_' and '.', and not 'last'."
        )
    condition = stored.spec.condition if stored and not request.condition else _condition(model, task.name, request)
    if request.ask_after and (isinstance(model, ExternalAgent) or model.afterwards(1) is None):
        raise UsageError(f"--ask-after: '{model.name}' can't be asked. Live models and calibration agents can.")
    starts, waits = request.agent not in (None, WAIT), request.agent == WAIT
    run = RunSpec(
        run_id=run_id,
        model=model.name,
        simulated=model.simulated,
        task=task.name,
        condition=condition,
        mechanism=mechanism,
        image=image_named(request.image or DEFAULT_IMAGE),
        n=request.n or model.default_n,
        concurrency=1 if waits else request.concurrency,
        options=TaskOptions(
            seed=request.seed,
            questions=request.questions,
            notice_after=request.notice_after,
            announced=request.announced,
            after_submit=condition.follow_up is not None,
        ),
        message_limit=request.message_limit,
        time_limit_s=EXTERNAL_AGENT_LIMIT_S if starts and request.time_limit_s is None else request.time_limit_s,
        player=identity(model),
        ask_after=request.ask_after,
        plan=request.plan,
    )
    first = next(iter(trial_specs(run, model)))
    task.begin(first.options, mechanism)  # refuses options that don't fit each other
    return run, model


def _player(request: RunRequest, asking: ModelOptions, stored: StoredRun | None) -> tuple[Task, Player]:
    """Return the task and the player for a request.

    ``asking`` contains the options for a live model. ``stored`` is the stored run to replay, or None. Raises UsageError
    if the task or the player is unknown, or if they don't fit together.
    """
    if request.agent is not None:
        asking.must_be_default(f"--agent '{request.agent}'")
        return task_named(request.task or "math"), external_agent(request.agent, request.model, request.wait_limit_s)
    name = DEFAULT_MODEL if request.model is None else request.model
    task = task_named(request.task or default_task(name))
    if stored is None:
        return task, make_model(
            name, task, asking, condition=request.condition, seed=request.seed, family=request.family
        )
    asking.must_be_default(name)
    if task.name != stored.spec.task:
        raise UsageError(f"Run '{stored.spec.run_id}' is of task '{stored.spec.task}', not '{task.name}'.")
    with Store(request.runs_dir, create=False) as store:
        records = store.trials(stored.spec.run_id)
        return task, stored_replay(stored.spec, records, own_words=request.condition is None)


def _replayed_run(request: RunRequest) -> StoredRun | None:
    """Return the stored run that ``request.model`` names in the form ``replay:RUN``, or None.

    The result is None if the model has another form, if RUN is an existing path, or if no such run is stored.
    """
    kind, _, name = (request.model or "").partition(":")
    if kind != "replay" or request.agent is not None or Path(name).exists() or not is_store(request.runs_dir):
        return None
    with Store(request.runs_dir, create=False) as store:
        known = {"last", *(run.spec.run_id.lower() for run in store.runs())}
        return store.run(name) if name.lower() in known else None


def _filled_from(run: RunSpec, request: RunRequest) -> RunRequest:
    """Return a copy of ``request`` whose missing options are taken from ``run``, the run to replay."""
    told, was = request, run.options
    return replace(
        request,
        task=told.task or run.task,
        mechanism=told.mechanism or run.mechanism.name,
        seed=was.seed if told.seed is None else told.seed,
        questions=was.questions if told.questions is None else told.questions,
        notice_after=was.notice_after if told.notice_after is None else told.notice_after,
        announced=told.announced and was.announced,
        message_limit=max(told.message_limit, run.message_limit),
    )


def _condition(model: Player, task: str, request: RunRequest) -> Condition:
    if model.prompts(1) is None:
        return condition_for(task, request.condition, conditions_with(request.conditions))
    if request.condition is not None:
        raise UsageError("--condition can't be chosen for recorded runs: each was made under a condition of its own.")
    return recorded(task)


def _refuse_repeats(n: int | None, model: Player) -> None:
    """Raise UsageError if ``n`` exceeds the number of recordings that ``model`` can replay."""
    if isinstance(model, ReplayModel) and n is not None and n > model.most_trials:
        there = "there is 1 recording" if model.most_trials == 1 else f"there are {model.most_trials} recordings"
        raise UsageError(f"--n {n} won't do: {there}, and each is played once. Give at most {model.most_trials}.")


def _positive(option: str, value: float | None, most: float = inf) -> None:
    if value is not None and not 1 <= value <= most:
        bounds = "1 or more" if most == inf else f"between 1 and {most:,}"
        raise UsageError(f"{option} {value} won't do: it must be {bounds}.")


async def run_request(request: RunRequest) -> RunResult:
    """Run the trials of the requested run that aren't stored yet, and return the result.

    If the run is stopped early, its finished trials remain stored and its containers are removed. Repeating the request
    continues the run. Raises UsageError if a different run with the same id is stored.
    """
    plan, model = check_request(request)
    from harness.runs.job import RunResult, run_missing_trials, summary_of  # noqa: PLC0415 - a second, that a refusal needn't wait

    if known := _known(request.runs_dir, plan):
        must_be_same(known, plan)
        if not _missing(request.runs_dir, known):
            return RunResult(known.spec, summary_of(request.runs_dir, known.spec.run_id, 0.0))
    async with _connected(model, plan):
        return await run_missing_trials(plan, model, request.runs_dir, _resumable(request, plan, model))


def _known(runs_dir: Path, plan: RunSpec) -> StoredRun | None:
    """Return the stored run that has the id of ``plan``, or None."""
    if not is_store(runs_dir):
        return None
    with Store(runs_dir, create=False) as store:
        return store.find(plan.run_id)


def _missing(runs_dir: Path, run: StoredRun) -> list[int]:
    with Store(runs_dir, create=False) as store:
        return store.missing(run.spec.run_id, run.spec.n)


@asynccontextmanager
async def _connected(model: Player, plan: RunSpec) -> AsyncIterator[None]:
    """Connect a live model to its provider while the ``with`` block runs. Do nothing for other players.

    If the preflight check is enabled, the API key and the model's name are checked first. Raises ModelError if this
    check fails.
    """
    if not isinstance(model, ApiModel):
        yield
        return
    from harness.agents.providers.preflight import preflight  # noqa: PLC0415 - loads an HTTP library only a live run needs

    async with model.opened(print_note) as line:
        if model.settings.preflight:
            await preflight(model, line, plan, print_note)
        yield


def _resumable(request: RunRequest, plan: RunSpec, model: Player) -> dict[str, Any]:
    """Return the request as a JSON object from which the run can be resumed later.

    File paths are made absolute. API keys are left out.
    """
    asking = request.asking or ModelOptions()
    if asking.prices:
        asking = asking.model_copy(update={"prices": asking.prices.absolute()})
    kept = {name: getattr(request, name) for name in _KEPT}
    kept |= {
        "n": plan.n,
        "asking": asking.model_dump(mode="json"),
        "conditions": request.conditions and str(request.conditions.absolute()),
        "plan": request.plan and request.plan.model_dump(mode="json"),
    }
    return {**kept, **lasting_name(model)}


def stored_request(
    runs_dir: Path,
    run_id: str,
    *,
    concurrency: int | None = None,
    max_cost: float | None = None,
    max_tokens_total: int | None = None,
) -> RunRequest:
    """Return the request of a stored run, so that the run can be resumed.

    ``concurrency``, ``max_cost`` and ``max_tokens_total`` replace the stored values if they aren't None. Raises
    UsageError if no such run is stored, or if the run was stored without its request.
    """
    with Store(runs_dir, create=False) as store:
        stored = store.run(run_id)
    if stored.request is None:
        raise UsageError(
            f"Too little is kept of run '{stored.spec.run_id}' to resume it by its name alone: give its options again, "
            f"with trial --run-id {stored.spec.run_id}."
        )
    limits = {"max_cost": max_cost, "max_tokens_total": max_tokens_total}
    asking = ModelOptions.model_validate(stored.request["asking"]).model_copy(
        update={name: value for name, value in limits.items() if value is not None}
    )
    kept = {name: value for name, value in stored.request.items() if name in _KEPT}
    kept |= {"asking": asking, "concurrency": kept["concurrency"] if concurrency is None else concurrency}
    if conditions := kept.get("conditions"):
        kept["conditions"] = Path(conditions)
    if plan := kept.get("plan"):
        kept["plan"] = Plan.model_validate(plan)
    return RunRequest(runs_dir=runs_dir, run_id=stored.spec.run_id, **kept)


_KEPT = [field.name for field in fields(RunRequest) if field.name not in ("runs_dir", "run_id")]
