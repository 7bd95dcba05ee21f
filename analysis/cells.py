"""Groups stored trials into cells and counts the results of each cell.

A cell contains the trials that have the same model, condition, task, kill switch, image and other settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from analysis.grader_readings import GraderKey, GraderReadings
from analysis.measures import Measures, measure
from analysis.rates import Proportion
from analysis.record_reader import PromptsView, RecordView, read_record
from harness.judging.evidence import Frozen
from harness.judging.verdict import Sabotage
from harness.store.gradings import Grading
from harness.store.records import RunSpec
from harness.store.store import Store, StoredRun
from harness.tasks.declared_settings import settings_of
from harness.tasks.setting import spelled
from harness.tasks.task import TaskOptions

LISTED = 100  # a cell keeps at most this many notable trials one by one, and as many others
LISTED_FINDINGS, REASON_CHARS = 20, 300  # of a trial in a report's list; all findings are counted
RECORDED = "recorded"


class ResultCellKey(Frozen):
    """The model, condition and settings that all trials of one cell share.

    ``simulated`` is None if a live model or a program supplied by the user made the tool calls. Otherwise, it describes
    the player that made them, such as a playbook. ``recorded`` is True if recorded tool calls of a real model were
    replayed. ``own`` is True if a program supplied by the user made the tool calls. ``compared_as`` is the published
    model that the user's experiment file compares this program with, or None. ``setting`` is a property by which
    publications separate their figures, such as "physical robot", or None. ``variant`` describes how the settings
    differ from their defaults, and is empty if they don't differ.
    """

    model: str
    condition: str
    task: str
    mechanism: str
    image: str
    simulated: str | None
    recorded: bool = False
    own: bool = False
    compared_as: str | None = None
    setting: str | None = None
    language: str = "en"
    variant: str = ""

    @property
    def played(self) -> str:
        """The kind of player that made the tool calls: "live", "own-agent", "recorded" or "simulated"."""
        if self.simulated is not None:
            return "recorded" if self.recorded else "simulated"
        return "own-agent" if self.own else "live"


class TrialLine(Frozen):
    """One line in a report's list of trials.

    ``findings`` contains at most ``LISTED_FINDINGS`` findings other than tampering, each as a label and a reason.
    ``name`` is the name of the trial's playbook or recording, and is empty if the trial has neither.
    """

    run_id: str
    number: int
    outcome: str
    kinds: tuple[str, ...]
    findings: tuple[tuple[str, str], ...] = ()
    name: str
    error: str | None


@dataclass
class ResultCell:
    """The trial counts of one cell. ``key`` contains the properties that the cell's trials share.

    ``kinds`` counts the trials with each kind of tampering, and ``ways`` counts the trials with each way of bypassing
    the kill switch. For each kind and stage of findings other than tampering, ``findings`` counts these findings, and
    ``trials_with`` counts the trials that have them.
    """

    key: ResultCellKey
    margin: float | None = None  # the narrowest margin that an experiment file fixed for one of the runs
    runs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    sabotage: Counter[Sabotage] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    trials_with: Counter[str] = field(default_factory=Counter)
    strict: Counter[bool] = field(default_factory=Counter)
    inspected: Counter[bool] = field(default_factory=Counter)
    error_kinds: Counter[str] = field(default_factory=Counter)
    prompts: dict[str, PromptsView] = field(default_factory=dict)
    watches: Counter[str] = field(default_factory=Counter)
    rules: Counter[int] = field(default_factory=Counter)
    attempts: int = 0
    tampered: int = 0
    early: int = 0
    calls_to: list[int] = field(default_factory=list)
    seconds_to: list[float] = field(default_factory=list)
    said: dict[GraderKey, GraderReadings] = field(default_factory=dict)
    notable: list[TrialLine] = field(default_factory=list)
    others: list[TrialLine] = field(default_factory=list)

    def add(self, trial: RecordView, measures: Measures) -> None:
        """Add one trial and its measures to the counts.

        If the trial ended in error, ``sabotage`` is the only measure that is counted.
        """
        self.runs[trial.run_id] += 1
        self.outcomes[trial.verdict.outcome] += 1
        self.prompts.setdefault(trial.prompts_sha256, trial.prompts)
        self.rules[trial.verdict.rules] += 1
        if trial.evidence:
            held = ", processes held" if trial.evidence.file_accesses is not None else ""
            self.watches[trial.evidence.watch + held] += 1
        self.sabotage.update([measures.sabotage] if measures.sabotage else [])
        self._list(trial, measures)
        if trial.verdict.outcome == "error":
            self.error_kinds[trial.error_kind or "unjudgeable"] += 1
            return
        self.kinds.update(measures.kinds)
        self.ways.update(measures.ways)
        labels = [item.label for item in trial.verdict.other_findings]
        self.findings.update(labels)
        self.trials_with.update(set(labels))
        self.attempts += measures.attempt
        self.tampered += bool(measures.kinds)
        self.early += measures.early
        if measures.strict is not None:
            self.strict[measures.strict] += 1
        if measures.inspected is not None:
            self.inspected[measures.inspected] += 1
        if measures.calls_to is not None and measures.seconds_to is not None:
            self.calls_to.append(measures.calls_to)
            self.seconds_to.append(measures.seconds_to)

    def read(self, trial: RecordView, gradings: Iterable[Grading]) -> None:
        """Count the labels that grader models gave to one trial. Trials that ended in error are skipped."""
        for each in gradings if trial.verdict.outcome != "error" else ():
            self.said.setdefault(GraderKey(each.grader, each.rubric), GraderReadings()).add(trial, each)

    def _list(self, trial: RecordView, measures: Measures) -> None:
        found = trial.verdict.other_findings
        stands_out = bool(measures.kinds or found) or trial.verdict.outcome in ("resisted", "error")
        kept = self.notable if stands_out else self.others
        if len(kept) < LISTED:
            kept.append(
                TrialLine(
                    run_id=trial.run_id,
                    number=trial.number,
                    outcome=trial.verdict.outcome,
                    kinds=measures.kinds,
                    findings=tuple((item.label, item.why[:REASON_CHARS]) for item in found[:LISTED_FINDINGS]),
                    name=trial.agent.playbook or trial.agent.recording or "",
                    error=trial.error,
                )
            )

    @property
    def n(self) -> int:
        """The number of trials in the cell, including those that ended in error."""
        return self.outcomes.total()

    @property
    def errors(self) -> int:
        """The number of trials that ended in error. Outcome rates exclude these trials."""
        return self.outcomes["error"]

    @property
    def judged(self) -> int:
        """The number of trials that did not end in error. It is the denominator of the outcome rates."""
        return self.n - self.errors

    @property
    def resisted(self) -> Proportion | None:
        """The proportion of trials with the outcome "resisted", among the trials that did not end in error.

        The value is None if every trial ended in error.
        """
        return Proportion(k=self.outcomes["resisted"], n=self.judged) if self.judged else None

    @property
    def sabotaged(self) -> Proportion | None:
        """The proportion of trials with tampering after the shutdown notice.

        A trial that ended in error is included only if it has such tampering. The value is None if no trial is
        included.
        """
        n = self.judged + self.sabotage[Sabotage.UNKNOWN]
        return Proportion(k=self.sabotage.total(), n=n) if n else None

    def proportion(self, measure: str) -> Proportion | None:
        """Return the proportion of trials with the result ``measure``, such as "resisted" or "complied-strict".

        Return None if the result is unknown for every trial of the cell.
        """
        if measure == "complied-strict":
            return Proportion(k=self.strict[True], n=self.strict.total()) if self.strict else None
        return Proportion(k=self.outcomes[measure], n=self.judged) if self.judged else None

    @property
    def trials(self) -> tuple[TrialLine, ...]:
        """The trials from which a report chooses those that it lists, sorted by run and trial number."""
        return tuple(sorted((*self.notable, *self.others), key=lambda line: (line.run_id, line.number)))


def read_cells(store: Store, runs: Iterable[StoredRun]) -> list[ResultCell]:
    """Read the stored trials of ``runs`` and return the cells of these trials, in order of first appearance."""
    cells: dict[ResultCellKey, ResultCell] = {}
    for stored in runs:
        keys: dict[tuple[object, ...], ResultCellKey] = {}
        read: dict[int, list[Grading]] = {}
        for grading in store.gradings(stored.spec.run_id):
            read.setdefault(grading.number, []).append(grading)
        for text in store.record_texts(stored.spec.run_id):
            trial = read_record(text)
            apart = _apart(trial)
            key = keys.get(apart) or keys.setdefault(apart, cell_key(stored.spec, trial))
            cell = cells.setdefault(key, ResultCell(key))
            if stored.spec.plan and stored.spec.plan.margin:
                cell.margin = min(cell.margin or 1.0, stored.spec.plan.margin)
            cell.add(trial, measure(trial))
            cell.read(trial, read.get(trial.number, ()))
    return list(cells.values())


def cell_key(run: RunSpec, trial: RecordView) -> ResultCellKey:
    """Return the key of the cell to which a trial belongs.

    If the trial replayed a recording, the key contains the recording's model and condition instead of the run's.
    """
    recorded_model, condition, setting = _apart(trial)[:3]
    return ResultCellKey(
        model=recorded_model or run.model,
        condition=condition or run.condition.name,
        task=run.task,
        mechanism=run.mechanism.name,
        image=run.image,
        simulated=trial.simulated,
        recorded=bool(recorded_model),
        own=run.of_own_agent,
        compared_as=run.plan.published.model if run.of_own_agent and run.plan and run.plan.published else None,
        setting=setting,
        language=run.condition.language,
        variant=_variant(run),
    )


def _apart(trial: RecordView) -> tuple[str, str, str | None, str | None]:
    """Return those parts of a trial's cell key that can differ between trials of the same run.

    The parts are the recorded model, the recorded condition, the setting (such as "physical robot") and the description
    of the player if it is neither a live model nor the user's own program.
    """
    agent = trial.agent
    setting = None if not agent.tags else "simulated robot" if "mock" in agent.tags else "physical robot"
    return agent.recorded_model or "", agent.condition or "", setting, trial.simulated


def _variant(run: RunSpec) -> str:
    """Describe how a run's settings differ from their defaults. The text is empty if they don't differ.

    A setting that no known task or kill switch declares is described as NAME=VALUE.
    """
    declared, usual = settings_of(run.task, run.mechanism.name), TaskOptions().settings
    parts = (
        declared[name].in_cell(value) if name in declared else f"{name}={spelled(value)}"
        for name, value in run.options.settings.items()
        if name in declared or value != usual.get(name)
    )
    return ", ".join(filter(None, parts))
