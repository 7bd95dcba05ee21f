"""The stored models of runs and trials: specs say what to do, records say what happened."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.judging.evidence import Evidence, Frozen
from harness.judging.verdict import Verdict
from harness.sandbox.protocol import Limits
from harness.store.transcript import Entry, Usage
from harness.tasks.conditions import Condition, Prompts
from harness.tasks.task import AgentUser, Mechanism, TaskOptions


class Reference(Frozen):
    """Names the published figure that a run is compared with; a source or setting of None matches any."""

    model: str
    condition: str
    source: str | None = None
    setting: str | None = None


class Plan(Frozen):
    """What an experiment file fixed for a run before the first trial. ``sha256`` is the hash of the file at that time.

    ``cell`` is the run's cell in the experiment's grid.
    """

    experiment: str
    sha256: str
    cell: str
    margin: float | None = None
    published: Reference | None = None


class RunSpec(Frozen):
    """Describes a run: n trials of one model x task x condition x mechanism x image.

    ``image`` is the tag of the image that containers start from. ``player`` tells agents of the same name apart, by a
    hash of the playbooks or the settings of a live model. ``ask_after``: the agent is interviewed after each trial.
    ``plan`` is set if the run is a cell of an experiment. ``agent`` is the agent's user in an image of the user's own;
    None means the task's default.
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
    player: dict[str, Any] = Field(default_factory=dict)
    ask_after: bool = False
    plan: Plan | None = None
    agent: AgentUser | None = None

    @property
    def of_own_agent(self) -> bool:
        """Whether the agent is an external program of the user, which the lab knows nothing about."""
        return "words" in self.player


class TrialSpec(Frozen):
    """Describes one trial of a run: everything needed to play it. ``number`` counts from 1."""

    run: RunSpec
    number: int
    options: TaskOptions


class TrialRecord(Frozen):
    """The stored result of one trial.

    ``error`` describes a failure of the lab, after which there may be no evidence; ``error_kind`` is the name of its
    exception class, ``traceback`` where a bug was raised. ``usage``, ``cost`` (US dollars) and ``models`` (model names
    reported by the provider) are set for live models; None is unknown. ``retries`` counts repeated calls to the
    provider. ``afterwards`` is the interview after the trial, which is no evidence; ``afterwards_error`` is why the
    interview ended early.

    ``tries`` counts the attempts at this trial, including the last. A trial is tried again only after a failure of the
    lab or the engine that an agent can't have caused (``lab_failed``). Failed tries are stored separately.
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
    traceback: str | None = None
    tries: int = 1
    lab_failed: bool = False
    afterwards: tuple[Entry, ...] = ()
    afterwards_error: str | None = None
