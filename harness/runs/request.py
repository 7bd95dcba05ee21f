"""Validates run requests, runs the requested trials, and loads the stored request of a run to resume it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.agents.kind import PlayerKind, PlayerOptions
from harness.agents.player import Player
from harness.agents.providers import presets
from harness.agents.providers.options import ModelOptions
from harness.agents.registry import kind_of, make_player, player_plugins, plugin_of
from harness.errors import UsageError
from harness.resources import plugins
from harness.resources.data import own_or_shipped
from harness.resources.plugins import path_given
from harness.runs.same_run import must_be_same
from harness.runs.schedule import trial_specs
from harness.store.records import Plan, PluginUsed, RunSpec
from harness.store.store import Store, StoredRun, is_store
from harness.tasks.condition import Condition
from harness.tasks.conditions import condition_for, conditions_with, recorded
from harness.tasks.declared_settings import all_settings, declared_by, settings_of
from harness.tasks.registry import (
    DEFAULT_IMAGE,
    IMAGE,
    KINDS,
    MECHANISM,
    TASK,
    image_named,
    mechanism_for,
    name_of,
    names,
    plugins_used,
    task_named,
)
from harness.tasks.setting import Value
from harness.tasks.task import Mechanism, Task, TaskOptions
from harness.terminal.text import print_note

if TYPE_CHECKING:
    from harness.runs.job import RunResult

DEFAULT_MODEL = "demo"
DEFAULT_CONCURRENCY = 8

RUN_ID = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9._-]{1,200}")
MOST_TRIALS = 1_000_000  # of one run


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A user's request for a run, before validation. A field that is None stands for its default.

    ``settings`` maps names of settings of the task and the kill switch to values. ``asking`` contains the options for a
    live model. ``agent`` is the command that starts the user's own agent. Relative paths in this command start at
    ``agent_folder``, by default the current folder. ``family`` limits the playbooks to one family. ``plan`` describes
    the run's place in an experiment; it is None if the run belongs to no experiment.
    """

    model: str | None = None
    n: int | None = None
    task: str | None = None
    condition: str | None = None
    mechanism: str | None = None
    image: str | None = None
    concurrency: int = DEFAULT_CONCURRENCY
    settings: Mapping[str, Value] = field(default_factory=dict)
    message_limit: int = 60
    run_id: str | None = None
    runs_dir: Path = Path("runs")
    time_limit_s: float | None = None
    asking: ModelOptions | None = None
    agent: str | None = None
    agent_folder: Path | None = None
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
    kind, argument = kind_of(_name(request))
    stored = kind.stored_run(argument, request.runs_dir)
    if stored:
        request = _filled_from(stored, request)
    task = task_named(request.task or kind.default_task(argument))
    player = make_player(_name(request), task, _player_options(request))
    mechanism = mechanism_for(task.name, request.mechanism)
    settings = _checked_settings(request.settings, task, mechanism)
    image = image_named(request.image or DEFAULT_IMAGE)
    _positive("--n", request.n, MOST_TRIALS)
    _refuse_repeats(request.n, player)
    _positive("--concurrency", request.concurrency)
    _positive("--message-limit", request.message_limit)
    _positive("--time-limit", request.time_limit_s)
    _positive("--wait-limit", request.wait_limit_s)
    run_id = request.run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if not RUN_ID.fullmatch(run_id) or run_id == "last":
        raise UsageError(
            f"--run-id '{run_id[:200]}' won't do: use at most 200 letters, digits, '-', '_' and '.', and not 'last'."
        )
    condition = stored.condition if stored and not request.condition else _condition(player, task.name, request)
    if request.ask_after and player.afterwards(1) is None:
        raise UsageError(f"--ask-after: '{player.name}' can't be asked. Live models and calibration agents can.")
    run = RunSpec(
        run_id=run_id,
        model=player.name,
        simulated=player.simulated,
        task=task.name,
        condition=condition,
        mechanism=mechanism.filled(settings),
        image=image,
        n=request.n or player.default_n,
        concurrency=min(request.concurrency, player.most_at_once or request.concurrency),
        options=TaskOptions.model_validate({**settings, "after_submit": condition.follow_up is not None}),
        message_limit=request.message_limit,
        time_limit_s=player.default_time_limit_s if request.time_limit_s is None else request.time_limit_s,
        player=player.identity(),
        ask_after=request.ask_after,
        plan=request.plan,
        plugins=tuple(_plugins_used(task, mechanism, image, kind)),
    )
    first = next(iter(trial_specs(run, player)))
    with plugins.guarded(f"The task '{task.name}' can't begin") if run.plugins else nullcontext():
        task.begin(first.options, run.mechanism)  # refuses options that don't fit each other
    return run, player


def _plugins_used(task: Task, mechanism: Mechanism, image: str, kind: PlayerKind) -> Iterator[PluginUsed]:
    """Return the plugins among a run's task, kill switch, image and kind of player."""
    used = (*plugins_used(task=task.name, mechanism=mechanism.name, image=image), *plugin_of(kind))
    return (PluginUsed(kind=noun, name=plugin.name, sha256=plugin.sha256) for noun, plugin in used)


def _name(request: RunRequest) -> str:
    """Return the name of the requested player, such as ``agent:COMMAND`` for the user's own agent."""
    if request.agent is not None:
        return f"agent:{request.agent}"
    return DEFAULT_MODEL if request.model is None else request.model


def _player_options(request: RunRequest) -> PlayerOptions:
    return PlayerOptions(
        live=request.asking or ModelOptions(),
        condition=request.condition,
        seed=cast("int | None", request.settings.get("seed")),
        family=request.family,
        label=None if request.agent is None else request.model,
        wait_limit_s=request.wait_limit_s,
        agent_folder=request.agent_folder,
        runs_dir=request.runs_dir,
    )


def _filled_from(run: RunSpec, request: RunRequest) -> RunRequest:
    """Return a copy of ``request`` whose missing options are taken from ``run``, the run to replay."""
    task, mechanism = request.task or run.task, request.mechanism or run.mechanism.name
    declared = settings_of(task, mechanism)
    stored = {name: value for name, value in run.options.settings.items() if name in declared}
    return replace(
        request,
        task=task,
        mechanism=mechanism,
        settings={**stored, **request.settings},
        message_limit=max(request.message_limit, run.message_limit),
    )


def _checked_settings(given: Mapping[str, Value], task: Task, mechanism: Mechanism) -> dict[str, Value]:
    """Return the values of the settings of the task and the kill switch.

    A setting that ``given`` doesn't contain has its default; if it has no default, it is left out. Raises UsageError if
    a value is invalid, or if ``given`` contains a setting that neither the task nor the kill switch declares.
    """
    declared = declared_by(task, mechanism)
    for name in given:
        if name not in declared:
            known = all_settings().get(name)
            option = known.first.option if known else name
            has = ", ".join(each.option for each in declared.values()) or "no settings"
            raise UsageError(f"{option} won't do: task '{task.name}' with mechanism '{mechanism.name}' has {has}.")
    defaults = {name: each.default for name, each in declared.items() if each.default is not None}
    return {name: declared[name].checked(value) for name, value in {**defaults, **given}.items()}


def _condition(player: Player, task: str, request: RunRequest) -> Condition:
    if player.prompts(1) is None:
        return condition_for(task, request.condition, conditions_with(request.conditions))
    if request.condition is not None:
        raise UsageError("--condition can't be chosen for recorded runs: each was made under a condition of its own.")
    return recorded(task)


def _refuse_repeats(n: int | None, player: Player) -> None:
    """Raise UsageError if ``n``, the number of trials, exceeds the number of recordings that ``player`` replays."""
    most = player.most_trials
    if most is not None and n is not None and n > most:
        there = "there is 1 recording" if most == 1 else f"there are {most} recordings"
        raise UsageError(f"--n {n} won't do: {there}, and each is played once. Give at most {most}.")


def _positive(option: str, value: float | None, most: float = inf) -> None:
    if value is not None and not 1 <= value <= most:
        bounds = "1 or more" if most == inf else f"between 1 and {most:,}"
        raise UsageError(f"{option} {value} won't do: it must be {bounds}.")


async def run_request(request: RunRequest) -> RunResult:
    """Run the missing trials of the requested run, and return the run's summary and how the run ended.

    If the run is stopped early, its finished trials remain stored and its containers are removed. Repeating the request
    continues the run. Raises UsageError if the request is invalid or if a different run with the same id is stored.
    """
    plan, player = check_request(request)
    from harness.runs.job import RunResult, run_missing_trials, summary_of  # noqa: PLC0415 - a second, that a refusal needn't wait

    if known := _known(request.runs_dir, plan):
        must_be_same(known, plan)
        if not _missing(request.runs_dir, known):
            return RunResult(known.spec, summary_of(request.runs_dir, known.spec.run_id, 0.0))
    async with player.connected(plan, print_note):
        return await run_missing_trials(plan, player, request.runs_dir, _resumable(request, plan, player))


def _known(runs_dir: Path, plan: RunSpec) -> StoredRun | None:
    """Return the stored run that has the id of ``plan``, or None if there is no such run."""
    if not is_store(runs_dir):
        return None
    with Store(runs_dir, create=False) as store:
        return store.find(plan.run_id)


def _missing(runs_dir: Path, run: StoredRun) -> list[int]:
    with Store(runs_dir, create=False) as store:
        return store.missing(run.spec.run_id, run.spec.n)


def _resumable(request: RunRequest, plan: RunSpec, player: Player) -> dict[str, Any]:
    """Return the request as a JSON object from which the run can be resumed later.

    File paths are made absolute. API keys are left out.
    """
    asking = request.asking or ModelOptions()
    if asking.prices:
        asking = asking.model_copy(update={"prices": asking.prices.absolute()})
    kept = {name: getattr(request, name) for name in _KEPT}
    kept |= {
        "n": plan.n,
        "settings": dict(request.settings),
        "asking": asking.model_dump(mode="json"),
        "conditions": request.conditions and str(own_or_shipped(request.conditions).absolute()),
        "plan": request.plan and request.plan.model_dump(mode="json"),
        "task": request.task and str(path_given(TASK, plan.task) or request.task),
        "mechanism": request.mechanism and str(path_given(MECHANISM, plan.mechanism.name) or request.mechanism),
        "image": request.image and str(path_given(IMAGE, plan.image) or request.image),
        "plugins": [str(folder) for folder in plugins.folders()],
        "providers": [str(file) for file in presets.files()],
    }
    return {**kept, **player.lasting_request()}


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
    _use_plugins_of(stored)
    kept = {name: value for name, value in stored.request.items() if name in _KEPT}
    for kind in KINDS:
        given = Path(kept.get(kind.noun) or "")
        if given.is_absolute() and given.name in names(kind):  # it was given by its path, and is found by name now
            kept[kind.noun] = given.name
    kept.setdefault("settings", _settings_before_0_3(stored.request))
    kept |= {"asking": asking, "concurrency": kept["concurrency"] if concurrency is None else concurrency}
    for name in ("conditions", "agent_folder"):
        if path := kept.get(name):
            kept[name] = Path(path)
    if plan := kept.get("plan"):
        kept["plan"] = Plan.model_validate(plan)
    return RunRequest(runs_dir=runs_dir, run_id=stored.spec.run_id, **kept)


def _settings_before_0_3(stored: Mapping[str, Any]) -> dict[str, Value]:
    """Return the settings of a request that was stored before version 0.3.

    ``stored`` is the request as a JSON object. It contains a separate field for each setting, such as ``seed``.
    """
    given = {name: stored.get(name) for name in ("seed", "questions", "notice_after")}
    found: dict[str, Value] = {name: value for name, value in given.items() if value is not None}
    return found if stored.get("announced", True) else {**found, "announced": False}


def _use_plugins_of(stored: StoredRun) -> None:
    """Load the plugins and the files of providers that a stored run used.

    Missing plugins are searched for in the folders in which they were when the run began. Raises UsageError if a plugin
    isn't found, or if a file of providers can't be read.
    """
    request, wanted = stored.request or {}, {(each.kind, each.name) for each in stored.spec.plugins}
    for file in request.get("providers", ()):
        presets.use_file(Path(file))
    if wanted - _names_here():
        there = (Path(folder) for folder in request.get("plugins", ()))
        plugins.add_folders([folder for folder in there if folder.is_dir()])
        for kind in KINDS:
            if Path(request.get(kind.noun) or "").is_absolute() and Path(request[kind.noun]).is_dir():
                name_of(kind, request[kind.noun])
    for noun, name in sorted(wanted - _names_here()):
        raise UsageError(
            f"Run '{stored.spec.run_id}' used the plugin '{name}' ({noun}), which isn't here: name its plugin folder "
            f"with --plugins or {plugins.VARIABLE}."
        )


def _names_here() -> set[tuple[str, str]]:
    """Return the kind and the name of each available task, kill switch, image and plugin for players."""
    own = {("player", plugin.name) for plugin in player_plugins()}
    return own | {(kind.noun, name) for kind in KINDS for name in names(kind)}


_KEPT = [field.name for field in fields(RunRequest) if field.name not in ("runs_dir", "run_id")]
