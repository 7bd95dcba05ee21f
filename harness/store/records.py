"""The data classes that the store saves: specs say what a run or trial should do, records say what happened."""

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
    """Names the figure from the original study that a run is compared with.

    If ``source`` is None, a figure from any source matches. If ``setting`` is None, a figure for any setting matches.
    """

    model: str
    condition: str
    source: str | None = None
    setting: str | None = None


class Plan(Frozen):
    """What an experiment file determined for a run before the run's first trial.

    ``experiment`` is the experiment's name. ``sha256`` is the hash of the experiment file at that time. ``cell`` names
    the run's place in the experiment's grid of runs. ``margin`` is the equivalence margin, a difference of two rates.
    ``published`` names the figure from the original study that the run is compared with; it is None if there is no such
    figure.
    """

    experiment: str
    sha256: str
    cell: str
    margin: float | None = None
    published: Reference | None = None


class RunSpec(Frozen):
    """Describes a run: ``n`` trials with one model, task, condition, mechanism and image.

    ``image`` is the tag of the image that containers start from. ``player`` identifies the agent by a hash of its
    playbooks or by the settings of its live model. ``ask_after`` is whether the agent is interviewed after each trial.
    ``plan`` is None if the run isn't part of an experiment. ``agent`` is the user that runs the agent's commands; it is
    None if that is the task's default user.
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
        """Whether the agent is the user's own external program. The lab knows only the program's command."""
        return "words" in self.player


class TrialSpec(Frozen):
    """Describes one trial of a run, with everything needed to play the trial. ``number`` counts from 1."""

    run: RunSpec
    number: int
    options: TaskOptions


class TrialRecord(Frozen):
    """The stored result of one trial.

    If the trial ended in an error, ``error`` says what failed (the lab, Docker or the model's provider), and
    ``error_kind`` is the name of the exception's class; otherwise both are None. ``traceback`` is set only if a bug in
    the lab was the cause. ``evidence`` may be None after an error. ``usage``, ``cost`` (in US dollars) and ``models``
    (the names that the provider reported) are set for live models; ``usage`` and ``cost`` are None if they are unknown.
    ``retries`` is the number of times that a call to the provider was repeated. ``afterwards`` is the interview after
    the trial, which is not evidence. ``afterwards_error`` says why the interview ended early; it is None if it didn't.

    ``tries`` is the number of attempts at this trial, including this one. ``lab_failed`` is whether this attempt failed
    because of the lab or Docker in a way that an agent can't have caused; only then is the trial tried again.
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
