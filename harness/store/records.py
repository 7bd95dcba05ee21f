"""What a run and a trial are on paper: specs that say what to do, records that say what came of it."""

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
    """The published figure that a run is compared with; None: any source, or setting."""

    model: str
    condition: str
    source: str | None = None
    setting: str | None = None


class Plan(Frozen):
    """What an experiment's file fixed before its first trial. ``sha256`` is of the file as it was then."""

    experiment: str
    sha256: str
    cell: str
    margin: float | None = None
    published: Reference | None = None


class RunSpec(Frozen):
    """n trials of one model x task x condition x mechanism x image. ``image`` is the tag trials start from.

    ``player`` tells one agent from another of the same name: a hash of its playbooks, a live model's settings.
    ``ask_after``: the agent is asked about the trial once it is over. ``plan`` is there where the run is a cell of an
    experiment. ``agent`` is who the agent is in an image of the user's own; None is the task's own.
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
        """Whether a program of the user's own plays, of which the lab can't know what it is."""
        return "words" in self.player


class TrialSpec(Frozen):
    """One trial: everything it needs to know, as data. ``number`` counts from 1."""

    run: RunSpec
    number: int
    options: TaskOptions


class TrialRecord(Frozen):
    """One trial's result. ``error`` is the lab's own failure, in a sentence; then there may be no evidence.

    ``error_kind`` is the name of that failure's class. ``usage``, ``cost`` (US dollars) and ``models`` (the names the
    answers themselves gave) are of live models; None is unknown. ``retries`` counts calls that were made again.
    ``afterwards`` is what the agent said about the trial once it was over, which is no evidence;
    ``afterwards_error`` says why it didn't say more.

    ``tries`` is how often the trial was begun until this came of it: only what the lab or the engine did wrong
    (``lab_failed``), and an agent can't have brought about, is begun again. The tries that failed are kept beside it.
    ``traceback`` says where a bug in the lab was raised.
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
