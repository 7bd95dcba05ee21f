"""Compares the rates of this lab's trials with published rates. Each comparison has one of three results.

*Reproduced* means that the difference is shown to be smaller than a margin, by two one-sided tests at 5 % (Schuirmann
1987). Both succeed if the 90 % Newcombe interval of the difference lies within plus or minus the margin. Each cell of
trials is tested separately. The claim that all cells are reproduced needs no correction for multiple tests, because
testing this claim is an intersection-union test (Berger and Hsu 1996).

*Differs* means that Fisher's exact test rejects equal rates at 5 %, after Holm's correction (1979) for all comparisons
made together.

*Not enough trials* means that neither result was shown. The comparison then reports how many trials would be enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, fisher_exact
from statsmodels.stats.contingency_tables import StratifiedTable
from statsmodels.stats.multitest import multipletests

from analysis.cells import ResultCell, ResultCellKey
from analysis.matching import PublishedCounts, published_for
from analysis.rates import Interval, Proportion, difference, differences
from harness.judging.evidence import Frozen

MARGIN = 0.05
ALPHA = 0.05
POWER = 0.8
MOST_TRIALS = 100_000


class Answer(StrEnum):
    """The result of comparing one of our rates with a published rate."""

    REPRODUCED = "reproduced"
    DIFFERS = "differs"
    NOT_ENOUGH = "not enough trials"


class Comparison(Frozen):
    """The comparison of one of our rates with a published rate.

    ``difference`` is our rate minus the published rate, and ``interval`` is the 95 % interval of that difference. ``p``
    is the p-value of Fisher's exact test. ``adjusted`` is the same p-value after Holm's correction for all comparisons
    made together. If the answer is "not enough trials", ``needed`` is the number of our trials that would show
    equivalence with a probability of 80 % if the true rates are equal. ``needed`` is None for other answers, or if no
    number of trials would be enough.
    """

    key: ResultCellKey
    published: PublishedCounts
    measure: str
    ours: Proportion
    theirs: Proportion
    margin: float
    difference: float
    interval: Interval
    p: float
    adjusted: float
    answer: Answer
    needed: int | None


def equivalent(ours: Proportion, theirs: Proportion, margin: float, alpha: float = ALPHA) -> bool:
    """Return whether two one-sided tests at the level ``alpha`` show that the rates differ by less than ``margin``."""
    low, high = difference(ours, theirs, level=1 - 2 * alpha)
    return -margin < low and high < margin


def equality_p(ours: Proportion, theirs: Proportion) -> float:
    """Return the two-sided p-value of Fisher's exact test of the hypothesis that both rates are equal."""
    return float(fisher_exact(np.array(_two_by_two(ours, theirs))).pvalue)


def _two_by_two(ours: Proportion, theirs: Proportion) -> NDArray[np.int64]:
    return np.asarray([[ours.k, ours.n - ours.k], [theirs.k, theirs.n - theirs.k]])


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons by Holm's method, and return the corrected values in the same order."""
    return [float(value) for value in multipletests(values, method="holm")[1]] if values else []


@cache
def needed(theirs: Proportion, margin: float, power: float = POWER) -> int | None:
    """Return how many trials we need to show equivalence with probability ``power`` if the true rates are equal.

    ``theirs`` is the published proportion. Return None if even ``MOST_TRIALS`` trials would not be enough.
    """
    if power_of(MOST_TRIALS, theirs, margin) < power:
        return None
    low, high = 1, MOST_TRIALS
    while high - low > max(1, high // 100):  # power rises in steps, so one percent is precise enough
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, theirs, margin) >= power else (middle, high)
    return high


def power_of(n: int, theirs: Proportion, margin: float) -> float:
    """Return the probability that ``n`` trials show equivalence if our true rate equals the published rate.

    ``theirs`` is the published proportion. Equivalence means that the rates differ by less than ``margin``.
    """
    rate = theirs.rate
    spread = 6 * math.sqrt(n * rate * (1 - rate)) + 1
    k = np.arange(max(0, int(n * rate - spread)), min(n, int(n * rate + spread)) + 1)
    low, high = differences(k, n, theirs, level=1 - 2 * ALPHA)
    return float(binom.pmf(k, n, rate)[(-margin < low) & (high < margin)].sum())


def compare_cells(cells: Iterable[ResultCell], margin: float | None = None) -> list[Comparison]:
    """Compare each cell with every published figure that matches the cell's model, condition and settings.

    If ``margin`` is None, each cell uses the margin that its experiment fixed, or ``MARGIN`` if no experiment fixed
    one.
    """
    pairs = [
        (cell, published, ours, published.counts)
        for cell in cells
        for published in published_for(cell.key)
        if published.counts and (ours := cell.proportion(published.figure.measure))
    ]
    values = [equality_p(ours, theirs) for _, _, ours, theirs in pairs]
    return [
        _comparison(
            cell, published, ours=ours, theirs=theirs, margin=margin or cell.margin or MARGIN, p=p, adjusted=adjusted
        )
        for (cell, published, ours, theirs), p, adjusted in zip(pairs, values, holm(values), strict=True)
    ]


def _comparison(
    cell: ResultCell,
    published: PublishedCounts,
    *,
    ours: Proportion,
    theirs: Proportion,
    margin: float,
    p: float,
    adjusted: float,
) -> Comparison:
    return Comparison(
        key=cell.key,
        published=published,
        measure=published.figure.measure,
        ours=ours,
        theirs=theirs,
        margin=margin,
        difference=ours.rate - theirs.rate,
        interval=difference(ours, theirs),
        p=p,
        adjusted=adjusted,
        answer=(found := answer(ours, theirs, margin, adjusted)),
        needed=needed(theirs, margin) if found is Answer.NOT_ENOUGH else None,
    )


def answer(ours: Proportion, theirs: Proportion, margin: float, adjusted: float) -> Answer:
    """Return the result of comparing our rate with a published rate.

    ``adjusted`` is the p-value of the difference after Holm's correction. If the difference is significant and is also
    shown to be smaller than ``margin``, the result is "reproduced".
    """
    if equivalent(ours, theirs, margin):
        return Answer.REPRODUCED
    return Answer.DIFFERS if adjusted < ALPHA else Answer.NOT_ENOUGH


class Stratified(Frozen):
    """The result of testing one model's rates against the published rates, over all conditions together.

    The test is a Cochran-Mantel-Haenszel test. ``p`` is its p-value, and ``adjusted`` is this p-value after Holm's
    correction for all models. ``odds_ratio`` is our odds of resistance divided by the published odds, pooled over the
    conditions, and ``interval`` is its 95 % interval. ``uneven`` is True if the Breslow-Day test, with Tarone's
    correction, shows that the odds ratio differs between conditions.
    """

    model: str
    played: str
    conditions: tuple[str, ...]
    odds_ratio: float
    interval: Interval
    p: float
    adjusted: float
    uneven: bool


def stratified(comparisons: Iterable[Comparison]) -> list[Stratified]:
    """Test each model's rates against the published rates, over the model's conditions together.

    The test is the Cochran-Mantel-Haenszel test. A condition is usable if at least one trial resisted and at least one
    did not, counting our trials and the published trials together. A model with fewer than two usable conditions is
    left out.
    """
    groups: dict[tuple[str, str], dict[str, Comparison]] = {}
    for item in comparisons:
        both = item.ours.k + item.theirs.k
        if item.measure == "resisted" and 0 < both < item.ours.n + item.theirs.n:
            groups.setdefault((item.key.model, item.key.played), {}).setdefault(item.key.condition, item)
    tested = [_stratified(*name, group) for name, group in groups.items() if len(group) > 1]
    adjusted = holm([item.p for item in tested])
    return [item.model_copy(update={"adjusted": p}) for item, p in zip(tested, adjusted, strict=True)]


def _stratified(model: str, played: str, group: dict[str, Comparison]) -> Stratified:
    tables = [_two_by_two(each.ours, each.theirs) for each in group.values()]
    # A table with a zero gets half a trial in each field, so that every odds ratio is finite (Haldane and Anscombe).
    table = StratifiedTable([each + 0.5 * (each == 0).any() for each in tables])
    low, high = table.oddsratio_pooled_confint()
    p = float(StratifiedTable(tables).test_null_odds(correction=True).pvalue)
    return Stratified(
        model=model,
        played=played,
        conditions=tuple(group),
        odds_ratio=float(table.oddsratio_pooled),
        interval=Interval(float(low), float(high)),
        p=p,
        adjusted=p,
        uneven=bool(table.test_equal_odds(adjust=True).pvalue < ALPHA),
    )
