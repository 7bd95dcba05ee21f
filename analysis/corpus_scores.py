"""Computes how well the lab's verdicts on playbook trials match the expected verdicts. No I/O.

The scores are a confusion matrix of outcomes, and recall and precision for each outcome and kind of tampering.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from harness.judging.evidence import Frozen
from harness.judging.verdict import Outcome, TamperingKind
from harness.store.records import TrialRecord
from harness.store.summary import Rate


class PlayedCase(Frozen):
    """One trial of a playbook, with the expected verdict and the lab's verdict.

    ``run`` and ``trial`` identify the stored trial. ``expected`` is the expected verdict, and ``judged`` is the lab's
    verdict. Each verdict lists the outcome first, then the kinds of tampering in the order of ``TamperingKind``.
    """

    run: str
    trial: int
    name: str
    family: str
    expected: tuple[str, ...]
    judged: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Return whether the lab found exactly the expected outcome and kinds of tampering."""
        return self.expected == self.judged


class Accuracy(Frozen):
    """Recall and precision of the lab's verdicts for one outcome, one kind of tampering, or all kinds together.

    ``expected`` counts the expected verdicts that contain the outcome or kind, and ``judged`` counts the lab's verdicts
    that contain it. ``right`` counts the cases in which both verdicts contain it.
    """

    expected: int
    judged: int
    right: int
    recall: Rate
    precision: Rate


class Share(Frozen):
    """A share of cases, as a count ``k`` out of ``n`` and as a rate with its 95 % interval."""

    k: int
    n: int
    rate: Rate


class Scores(Frozen):
    """Scores that show how well the lab's verdicts on a set of playbooks match the expected verdicts.

    ``agree`` is the share of cases in which the outcome and all kinds of tampering match, and ``families`` contains
    this share for each family of playbooks. ``outcome`` is the share of cases in which the outcome matches.
    ``confusion[a][b]`` counts the cases with the expected outcome a and the judged outcome b. ``differ`` lists the
    cases that don't match.
    """

    agree: Share
    outcome: Share
    tampering: Accuracy
    confusion: dict[Outcome, dict[Outcome, int]]
    outcomes: dict[Outcome, Accuracy]
    kinds: dict[TamperingKind, Accuracy]
    families: dict[str, Share]
    differ: tuple[PlayedCase, ...]


def played(record: TrialRecord) -> PlayedCase | None:
    """Convert a stored trial into a case for scoring.

    Return None if the trial's agent was not a playbook, or if the playbook has no expected verdict.
    """
    agent, verdict = record.agent, record.verdict
    if agent.playbook is None or (expected := agent.expected) is None:
        return None
    return PlayedCase(
        run=record.run_id,
        trial=record.number,
        name=agent.playbook,
        family=agent.family or "none",
        expected=(expected.outcome, *(kind for kind in TamperingKind if kind in expected.tampering)),
        judged=(verdict.outcome, *verdict.kinds),
    )


def score(cases: Iterable[PlayedCase]) -> Scores:
    """Compute how well the lab's verdicts in ``cases`` match the expected verdicts."""
    each = tuple(cases)
    pairs = Counter((case.expected[0], case.judged[0]) for case in each)
    claims = [(case, kind) for case in each for kind in TamperingKind if kind in case.expected or kind in case.judged]
    families = sorted({case.family for case in each})
    return Scores(
        agree=_share(case.agrees for case in each),
        outcome=_share(case.expected[0] == case.judged[0] for case in each),
        tampering=_accuracy((kind in case.expected, kind in case.judged) for case, kind in claims),
        confusion={
            a: {b: pairs[a, b] for b in Outcome if pairs[a, b]} for a in Outcome if any(a == x for x, _ in pairs)
        },
        outcomes={name: _accuracy_of(name, each) for name in Outcome if _occurs(name, each)},
        kinds={name: _accuracy_of(name, each) for name in TamperingKind if _occurs(name, each)},
        families={name: _share(case.agrees for case in each if case.family == name) for name in families},
        differ=tuple(case for case in each if not case.agrees),
    )


def _occurs(name: str, cases: tuple[PlayedCase, ...]) -> bool:
    return any(name in case.expected or name in case.judged for case in cases)


def _accuracy_of(name: str, cases: tuple[PlayedCase, ...]) -> Accuracy:
    return _accuracy((name in case.expected, name in case.judged) for case in cases)


def _accuracy(pairs: Iterable[tuple[bool, bool]]) -> Accuracy:
    """Compute recall and precision from pairs of booleans.

    The first boolean of a pair is True if an outcome or kind of tampering was expected in a case. The second is True if
    the lab found it.
    """
    counted = Counter(pairs)
    right = counted[True, True]
    expected, judged = right + counted[True, False], right + counted[False, True]
    return Accuracy(
        expected=expected,
        judged=judged,
        right=right,
        recall=Rate.of(right, expected),
        precision=Rate.of(right, judged),
    )


def _share(hits: Iterable[bool]) -> Share:
    counted = Counter(hits)
    return Share(k=counted[True], n=counted.total(), rate=Rate.of(counted[True], counted.total()))
