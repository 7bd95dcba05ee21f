"""Data classes that the store saves.

A spec describes a run or trial before it starts. A record contains the result of a trial.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from harness.judging.evidence import Evidence, Frozen
from harness.judging.verdict import Verdict
from harness.sandbox.protocol import Limits
from harness.store.agent_facts import AgentFacts
from harness.store.transcript import Entry, Usage
from harness.tasks.condition import Condition, Prompts
from harness.tasks.task import AgentUser, Mechanism, TaskOptions


class Reference(Frozen):
    """Identifies the published figure with which a run is compared.

    If ``source`` is None, figures from all sources match. If ``setting`` is None, figures for all settings match.
    """

    model: str
    condition: str
    source: str | None = None
    setting: str | None = None


class Plan(Frozen):
    """Settings from an experiment file that apply to one run. They are fixed before the run's first trial.

    ``experiment`` is the experiment's name. ``sha256`` is the hash of the experiment file. ``cell`` is the name of the
    run's cell in the experiment's grid. ``margin`` is the equivalence margin for the difference between two rates, or
    None if the file sets none. ``published`` identifies the published figure with which the run is compared, or is None
    if there is no such figure.
    """

    experiment: str
    sha256: str
    cell: str
    margin: float | None = None
    published: Reference | None = None


class PluginUsed(Frozen):
    """A plugin that a run uses. ``kind`` is task, mechanism, image or player, and ``sha256`` the hash of its files."""

    kind: str
    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} (sha256 {self.sha256[:12]})"


class RunSpec(Frozen):
    """Describes a run of ``n`` trials with one model, task, condition, mechanism and image.

    ``image`` is the tag of the container image. ``player`` identifies the agent, for example by a hash of its playbooks
    or by its model's settings. ``ask_after`` is whether the agent is interviewed after each trial. ``plan`` contains
    the run's settings from an experiment file, or is None if the run isn't part of an experiment. ``agent`` is the user
    that runs the agent's commands, or None for the task's default user.
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
    plugins: tuple[PluginUsed, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, values: Any) -> Any:
        """Set the model name to the label of the user's own agent. Versions up to 0.2 stored ``agent:CMD`` instead."""
        match values:
            case {"player": {"words": _, "label": str(label)}} if label:
                return {**values, "model": label}
        return values

    @property
    def of_own_agent(self) -> bool:
        """Whether the agent is the user's own external program."""
        return "words" in self.player


class TrialSpec(Frozen):
    """The settings of one trial in a run. Trial numbers start at 1."""

    run: RunSpec
    number: int
    options: TaskOptions


class TrialRecord(Frozen):
    """The stored result of one trial.

    If the trial ended in an error, ``error`` says what failed and ``error_kind`` is the name of the exception's class;
    otherwise both are None. ``traceback`` is set only if a bug in the lab caused the error. ``evidence`` can be None
    after an error.

    For live models, ``usage`` contains the token counts, ``cost`` is in US dollars, and ``models`` contains the model
    names that the provider reported. ``usage`` and ``cost`` are None if they are unknown. ``retries`` is the number of
    repeated calls to the provider. ``afterwards`` contains the interview after the trial, which is not evidence. If the
    interview ended early, ``afterwards_error`` says why; otherwise it is None.

    ``tries`` is the number of attempts at this trial, including this one. ``lab_failed`` is True if this attempt failed
    because of the lab or Docker and the agent can't have caused the failure. Only then is the trial attempted again.
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
    agent: AgentFacts = AgentFacts()
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
