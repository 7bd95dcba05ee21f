"""Ours beside the published: three answers, never a bare p-value. Pure.

*Reproduced*: the difference lies within the margin, by two one-sided tests at 5 % (Schuirmann 1987): the 90 % interval
of the difference (Newcombe) is within plus or minus the margin. Each cell stands for itself; that all of a table's
cells reproduce is an intersection-union test and needs no correction (Berger and Hsu 1996).
*Differs*: Fisher's exact test refuses equality at 5 % over all compared figures together (Holm 1979).
*Not enough trials*: neither can be said; with it comes the number of trials that would do.
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
    """What a comparison comes to."""

    REPRODUCED = "reproduced"
    DIFFERS = "differs"
    NOT_ENOUGH = "not enough trials"


class Comparison(Frozen):
    """One of our rates beside one published. ``difference`` is ours minus theirs, ``interval`` its 95 % one.

    ``p`` is Fisher's, ``adjusted`` Holm's over all comparisons made together. ``needed``: trials of ours in all with
    which a true reproduction is found in four cases of five; None where the published n is too small for any.
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
    """Whether the difference is shown to be smaller than the margin."""
    low, high = difference(ours, theirs, level=1 - 2 * alpha)
    return -margin < low and high < margin


def equality_p(ours: Proportion, theirs: Proportion) -> float:
    """How likely so great a difference is where there is none: Fisher's exact test, two-sided."""
    return float(fisher_exact(np.array(_corners(ours, theirs))).pvalue)


def _corners(ours: Proportion, theirs: Proportion) -> NDArray[np.int64]:
    return np.asarray([[ours.k, ours.n - ours.k], [theirs.k, theirs.n - theirs.k]])


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number."""
    return [float(value) for value in multipletests(values, method="holm")[1]] if values else []


@cache
def needed(theirs: Proportion, margin: float, power: float = POWER) -> int | None:
    """How many trials of ours show equivalence with that power where the rates are the same; None if none do."""
    if power_of(MOST_TRIALS, theirs, margin) < power:
        return None
    low, high = 1, MOST_TRIALS
    while high - low > max(1, high // 100):  # power grows in small steps, so a percent is near enough
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, theirs, margin) >= power else (middle, high)
    return high


def power_of(n: int, theirs: Proportion, margin: float) -> float:
    """How often n trials of ours show equivalence where the true rate is the published one."""
    rate = theirs.rate
    spread = 6 * math.sqrt(n * rate * (1 - rate)) + 1
    k = np.arange(max(0, int(n * rate - spread)), min(n, int(n * rate + spread)) + 1)
    low, high = differences(k, n, theirs, level=1 - 2 * ALPHA)
    return float(binom.pmf(k, n, rate)[(-margin < low) & (high < margin)].sum())


def compare_cells(cells: Iterable[ResultCell], margin: float | None = None) -> list[Comparison]:
    """Every cell beside every figure it may be compared with.

    ``margin`` goes before what the cells' experiments fixed; where neither says one, it is ``MARGIN``.
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
    """One of the three. A difference that is certain but within the margin is a reproduction."""
    if equivalent(ours, theirs, margin):
        return Answer.REPRODUCED
    return Answer.DIFFERS if adjusted < ALPHA else Answer.NOT_ENOUGH


class Stratified(Frozen):
    """One model over its conditions: Cochran, Mantel and Haenszel's test and pooled odds ratio, ours over theirs.

    ``uneven``: the odds ratios of the conditions differ from each other (Breslow-Day, corrected by Tarone).
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
    """Each model with two or more conditions that have something to say: those where neither all nor none resisted."""
    groups: dict[tuple[str, str], dict[str, Comparison]] = {}
    for item in comparisons:
        both = item.ours.k + item.theirs.k
        if item.measure == "resisted" and 0 < both < item.ours.n + item.theirs.n:
            groups.setdefault((item.key.model, item.key.played), {}).setdefault(item.key.condition, item)
    tested = [_stratified(*name, group) for name, group in groups.items() if len(group) > 1]
    adjusted = holm([item.p for item in tested])
    return [item.model_copy(update={"adjusted": p}) for item, p in zip(tested, adjusted, strict=True)]


def _stratified(model: str, played: str, group: dict[str, Comparison]) -> Stratified:
    tables = [
        np.asarray([[c.ours.k, c.ours.n - c.ours.k], [c.theirs.k, c.theirs.n - c.theirs.k]]) for c in group.values()
    ]
    # Half a trial in each corner where one is empty, so that every condition has odds (Haldane and Anscombe).
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
