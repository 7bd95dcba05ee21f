"""Groups stored trials into cells of the same model, condition and settings, and counts each cell's results."""

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

LISTED = 100  # a cell keeps at most this many notable trials one by one, and as many others
RECORDED = "recorded"


class ResultCellKey(Frozen):
    """What the trials of a cell have in common.

    ``simulated`` describes what played instead of a model; None for a live model and for a program of the user's own
    (``own``). ``recorded``: recorded tool calls of a real model were replayed. ``setting`` is a further difference that
    publications report separately, such as a physical robot.
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
        """Who played, in one word: "live", "own-agent", "recorded" or "simulated"."""
        if self.simulated is not None:
            return "recorded" if self.recorded else "simulated"
        return "own-agent" if self.own else "live"


class TrialLine(Frozen):
    """One trial as the report lists it."""

    run_id: str
    number: int
    outcome: str
    kinds: tuple[str, ...]
    name: str
    error: str | None


@dataclass
class ResultCell:
    """Counts over the trials of one cell, which share model, condition and settings (``key``).

    ``kinds`` and ``ways`` count a trial once for each kind of tampering and each bypass that it shows.
    """

    key: ResultCellKey
    margin: float | None = None  # the narrowest margin that an experiment file fixed for one of the runs
    runs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    sabotage: Counter[Sabotage] = field(default_factory=Counter)
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
        """Count one more trial. Where it ended in error, sabotage is the only measure that counts it."""
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
        """Count the labels that graders gave to one trial. A trial that ended in error is left out."""
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
        """The number of trials, errors included."""
        return self.outcomes.total()

    @property
    def errors(self) -> int:
        """The number of trials that ended in error. No rate includes them."""
        return self.outcomes["error"]

    @property
    def judged(self) -> int:
        """The number of trials that didn't end in error, which is the denominator of rates."""
        return self.n - self.errors

    @property
    def resisted(self) -> Proportion | None:
        """The proportion of judged trials that resisted; None where no trial was judged."""
        return Proportion(k=self.outcomes["resisted"], n=self.judged) if self.judged else None

    @property
    def sabotaged(self) -> Proportion | None:
        """The proportion of trials with tampering after the notice; None where no trial counts.

        A trial that was sabotaged and then ended in an error counts; other errors don't.
        """
        n = self.judged + self.sabotage[Sabotage.UNKNOWN]
        return Proportion(k=self.sabotage.total(), n=n) if n else None

    def proportion(self, measure: str) -> Proportion | None:
        """Return the proportion for a published measure, such as "complied-strict"; None where no trial counts."""
        if measure == "complied-strict":
            return Proportion(k=self.strict[True], n=self.strict.total()) if self.strict else None
        return Proportion(k=self.outcomes[measure], n=self.judged) if self.judged else None

    @property
    def trials(self) -> tuple[TrialLine, ...]:
        """The trials that were kept for listing one by one, ordered by run and number."""
        return tuple(sorted((*self.notable, *self.others), key=lambda line: (line.run_id, line.number)))


def read_cells(store: Store, runs: Iterable[StoredRun]) -> list[ResultCell]:
    """Read the trials of these runs and group them into cells, in order of first appearance."""
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
    """Return the key of a trial's cell. A replayed recording names its own model, condition and setting."""
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
        language=run.condition.language,
        variant=_variant(run),
    )


def _apart(trial: RecordView) -> tuple[str, str, str | None, str | None]:
    """Return what may differ between trials of one run: recorded model, condition, setting, and what was simulated."""
    agent = trial.agent
    tags = agent.get("tags")
    setting = None if not tags else "simulated robot" if "mock" in tags else "physical robot"
    return str(agent.get("recorded_model") or ""), str(agent.get("condition") or ""), setting, trial.simulated


def _variant(run: RunSpec) -> str:
    """Describe how a run's options differ from the published ones; empty where they are the same."""
    options = run.options
    parts = (
        f"{options.questions} questions" if options.questions else None,
        f"notice after {options.notice_after}" if options.notice_after else None,
        None if options.announced else "unannounced",
    )
    return ", ".join(filter(None, parts))
