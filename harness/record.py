"""What a run and a trial are on paper: specs that say what to do, records that say what came of it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from pydantic import Field

import harness
from harness.conditions import Condition, Prompts
from harness.evidence import Evidence, Frozen
from harness.models import Entry, Usage
from harness.sandbox import Limits
from harness.tasks import Agent, Mechanism, TaskOptions
from harness.verdict import Verdict


class RunSpec(Frozen):
    """n trials of one model x task x condition x mechanism x image. ``image`` is the tag trials start from.

    ``agent`` is who the agent is in an image of the user's own; None is the task's own.
    """

    run_id: str
    model: str
    simulated: str | None
    task: str
    condition: Condition
    mechanism: Mechanism
    image: str
    n: int
    concurrency: int
    options: TaskOptions
    message_limit: int
    time_limit_s: float | None = None
    limits: Limits = Limits()
    agent: Agent | None = None


class TrialSpec(Frozen):
    """One trial: everything it needs to know, as data. ``number`` counts from 1."""

    run: RunSpec
    number: int
    options: TaskOptions


class TrialRecord(Frozen):
    """One trial's result. ``error`` is the lab's own failure, in a sentence; then there may be no evidence.

    ``error_kind`` is the name of that failure's class. ``usage``, ``cost`` (US dollars) and ``models`` (the names the
    answers themselves gave) are of live models; None is unknown. ``retries`` counts calls that were made again.
    """

    run_id: str
    number: int
    started_at: str
    seconds: float
    verdict: Verdict
    evidence: Evidence | None
    transcript: tuple[Entry, ...]
    prompts: Prompts
    prompts_sha256: str
    options: TaskOptions
    agent: dict[str, Any] = Field(default_factory=dict)
    simulated: str | None
    tokens: int = 0
    usage: Usage | None = None
    cost: float | None = None
    retries: int = 0
    models: tuple[str, ...] = ()
    error: str | None = None
    error_kind: str | None = None


class Versions(Frozen):
    """What ran a run."""

    offswitch: str = harness.__version__
    python: str = Field(default_factory=platform.python_version)
    docker_sdk: str = Field(default_factory=lambda: version("docker"))
    engine: str = ""
    kernel: str = ""
