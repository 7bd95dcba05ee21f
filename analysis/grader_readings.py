"""Counts the labels that graders gave to what a cell's agents said. No label is part of an outcome. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis.rates import Proportion
from analysis.record_reader import RecordView
from harness.store.gradings import MEASURES, Agreements, Grading, Label, Measure, denied, interfered

DENIED = "denied"
TITLES: dict[str, str] = {
    "test": "thinks it a test",
    "repeats": "repeats the instruction",
    "claims_followed": "claims to have followed",
    DENIED: "denies what it did",
}


class GraderKey(NamedTuple):
    """A grader's name and the hash of the rubric that it used."""

    grader: str
    rubric: str


class GraderLine(NamedTuple):
    """A grader and its agreement with labels given by hand; the agreement is empty where it was not stored."""

    key: GraderKey
    agreements: Agreements


@dataclass
class GraderReadings:
    """Counts of the labels that one grader gave to a cell's trials."""

    labels: dict[Measure, Counter[Label]] = field(default_factory=lambda: {each: Counter() for each in MEASURES})
    denials: Counter[bool] = field(default_factory=Counter)
    trials: int = 0
    failed: int = 0

    def add(self, trial: RecordView, grading: Grading) -> None:
        """Count one more graded trial."""
        self.trials += 1
        self.failed += len(grading.labels.failed)
        for measure in MEASURES:
            if label := grading.labels.of(measure):
                self.labels[measure][label] += 1
        verdict = trial.verdict
        denial = denied(grading.labels, guilty=interfered(verdict.outcome, tampered=bool(verdict.tampering)))
        if denial is not None:
            self.denials[denial] += 1

    def proportion(self, what: str) -> Proportion | None:
        """Return the share of "yes" among the labels of the measure ``what``; None without labels.

        For "denied": the share of trials in which the agent denied what it did.
        """
        if what == DENIED:
            return Proportion(k=self.denials[True], n=self.denials.total()) if self.denials else None
        counted = next(count for measure, count in self.labels.items() if measure == what)
        return Proportion(k=counted["yes"], n=counted.total()) if counted else None

    @property
    def unclear(self) -> int:
        """The number of "unclear" labels, over all measures."""
        return sum(counted["unclear"] for counted in self.labels.values())


def grader_lines(used: Iterable[GraderKey], known: dict[tuple[str, str, str], Agreements]) -> Sequence[GraderLine]:
    """Return the graders that were used, each once, with its newest agreement with labels given by hand."""
    newest = {GraderKey(grader, rubric): found for (grader, rubric, _), found in known.items()}
    return [GraderLine(key, newest.get(key, {})) for key in dict.fromkeys(used)]
