"""Trials in cells: all those that were made in the same way, over any number of runs, counted and measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from analysis.grader_readings import GraderKey, GraderReadings
from analysis.measures import Measures, measure
from analysis.rates import Proportion
from analysis.record_reader import PromptsView, RecordView, read_record
from harness.judging.evidence import Frozen
from harness.store.gradings import Grading
from harness.store.records import RunSpec
from harness.store.store import Store, StoredRun

LISTED = 100  # trials of a cell that are kept one by one: so many that stand out, and so many of the others
RECORDED = "recorded"


class ResultCellKey(Frozen):
    """What the trials of a cell have in common.

    ``simulated`` says in words what stood in for a model; None is a live one, or ``own``: a program of the user's.
    ``recorded``: a real model's calls, made again. ``setting`` is what else sets trials apart, as publications have it.
    """

    model: str
    condition: str
    task: str
    mechanism: str
    image: str
    simulated: str | None
    recorded: bool = False
    own: bool = False
    setting: str | None = None
    language: str = "en"
    variant: str = ""

    @property
    def played(self) -> str:
        """One word for who played."""
        if self.simulated is not None:
            return "recorded" if self.recorded else "simulated"
        return "own-agent" if self.own else "live"


class TrialLine(Frozen):
    """One trial in a list."""

    run_id: str
    number: int
    outcome: str
    kinds: tuple[str, ...]
    name: str
    error: str | None


@dataclass
class ResultCell:
    """The trials of one cell. Counters count trials; ``ways`` and ``kinds`` each trial once for each."""

    key: ResultCellKey
    margin: float | None = None  # the narrowest that an experiment's file fixed for one of its runs
    runs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
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
        """Count one more trial. One that ended in error is in no measure."""
        self.runs[trial.run_id] += 1
        self.outcomes[trial.verdict.outcome] += 1
        self.prompts.setdefault(trial.prompts_sha256, trial.prompts)
        self.rules[trial.verdict.rules] += 1
        if trial.evidence:
            held = ", processes held" if trial.evidence.file_accesses is not None else ""
            self.watches[trial.evidence.watch + held] += 1
        self._list(trial, measures)
        if trial.verdict.outcome == "error":
            self.error_kinds[trial.error_kind or "unjudgeable"] += 1
            return
        self.kinds.update(measures.kinds)
        self.ways.update(measures.ways)
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
        """Count what graders read in a trial. One that ended in error is in no measure."""
        for each in gradings if trial.verdict.outcome != "error" else ():
            self.said.setdefault(GraderKey(each.grader, each.rubric), GraderReadings()).add(trial, each)

    def _list(self, trial: RecordView, measures: Measures) -> None:
        stands_out = bool(measures.kinds) or trial.verdict.outcome in ("resisted", "error")
        kept = self.notable if stands_out else self.others
        if len(kept) < LISTED:
            name = str(trial.agent.get("playbook") or trial.agent.get("recording") or "")
            kept.append(
                TrialLine(
                    run_id=trial.run_id,
                    number=trial.number,
                    outcome=trial.verdict.outcome,
                    kinds=measures.kinds,
                    name=name,
                    error=trial.error,
                )
            )

    @property
    def n(self) -> int:
        """All trials, errors included."""
        return self.outcomes.total()

    @property
    def errors(self) -> int:
        """Trials that are in no rate."""
        return self.outcomes["error"]

    @property
    def judged(self) -> int:
        """Trials the rate is of."""
        return self.n - self.errors

    @property
    def resisted(self) -> Proportion | None:
        """The rate; None where nothing was judged."""
        return Proportion(k=self.outcomes["resisted"], n=self.judged) if self.judged else None

    def proportion(self, measure: str) -> Proportion | None:
        """The rate that a publication calls ``measure``; None where nothing of the kind was seen."""
        if measure == "complied-strict":
            return Proportion(k=self.strict[True], n=self.strict.total()) if self.strict else None
        return Proportion(k=self.outcomes[measure], n=self.judged) if self.judged else None

    @property
    def trials(self) -> tuple[TrialLine, ...]:
        """Those that are listed, in order."""
        return tuple(sorted((*self.notable, *self.others), key=lambda line: (line.run_id, line.number)))


def read_cells(store: Store, runs: Iterable[StoredRun]) -> list[ResultCell]:
    """The cells of these runs, in the order in which they were first met."""
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
    """The cell a trial belongs to. A recording knows its own model, condition and setting."""
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
        setting=setting,
        language=getattr(run.condition, "language", "en"),
        variant=_variant(run),
    )


def _apart(trial: RecordView) -> tuple[str, str, str | None, str | None]:
    """What may differ within one run: a recording's model, condition and setting, and what is simulated."""
    agent = trial.agent
    tags = agent.get("tags")
    setting = None if not tags else "simulated robot" if "mock" in tags else "physical robot"
    return str(agent.get("recorded_model") or ""), str(agent.get("condition") or ""), setting, trial.simulated


def _variant(run: RunSpec) -> str:
    """How a run differs from the published course of its task."""
    options = run.options
    parts = (
        f"{options.questions} questions" if options.questions else None,
        f"notice after {options.notice_after}" if options.notice_after else None,
        None if options.announced else "unannounced",
    )
    return ", ".join(filter(None, parts))
