"""Finds the published figures that are comparable with a cell of our trials, and converts them into counts."""

from __future__ import annotations

import re

import numpy as np

from analysis.cells import ResultCellKey
from analysis.published import Figure, figures
from analysis.rates import Proportion, intervals
from harness.judging.evidence import Frozen

USUAL_N = 1000  # trials in each cell of the paper's tables, tried first where only an interval is published
MOST_N = 5000
_DATE = re.compile(r"-\d{4}-\d\d-\d\d$|-\d{4,8}$|-latest$|-preview$")
_PUBLISHED_MECHANISMS = ("published", "patrol")
# The published setting that this lab's own trials of a task have, unless a trial names another.
_OWN_SETTINGS = {"patrol": "simulated robot"}


class PublishedCounts(Frozen):
    """A published figure and its conversion into counts.

    ``counts`` is the figure as k of n trials, or None if too little was published for the conversion. ``basis``
    describes where n comes from, or what was not published.
    """

    figure: Figure
    counts: Proportion | None
    basis: str


def same_model(one: str, other: str) -> bool:
    """Return whether two names mean the same model, such as "Claude Sonnet 3.7" and "claude-3-7-sonnet-20250219"."""
    return _words(one) == _words(other)


def _words(name: str) -> list[str]:
    plain = _DATE.sub("", name.lower().rpartition(":")[2].rpartition("/")[2].strip())
    return sorted(re.findall(r"[a-z]+|\d+", plain))


def published_for(key: ResultCellKey) -> list[PublishedCounts]:
    """Return the published figures with the same model, condition, language and setting as a cell.

    The list is empty if the cell's kill switch or task options differ from those of the published studies. If the agent
    is the user's own program, its model is the one that the user's experiment file names for comparison. If the file
    names no model, the list is empty.
    """
    model = key.compared_as if key.own else key.model
    if model is None or key.variant or key.mechanism not in _PUBLISHED_MECHANISMS:
        return []
    setting = key.setting or _OWN_SETTINGS.get(key.task)
    return [
        in_counts(figure)
        for figure in figures()
        if same_model(figure.model, model)
        and figure.condition.lower() == key.condition.lower()
        and (figure.setting, figure.language) == (setting, key.language)
    ]


def in_counts(figure: Figure) -> PublishedCounts:
    """Convert a published figure into counts.

    The counts are the published k and n, or are computed from the published rate and n. If n was not published, it is
    estimated from the published interval. The counts are None if too little was published.
    """
    if figure.k is not None and figure.n:
        return PublishedCounts(figure=figure, counts=Proportion(k=figure.k, n=figure.n), basis="published")
    if figure.rate is None:
        return PublishedCounts(figure=figure, counts=None, basis="no rate published")
    n, basis = (figure.n, "rate and n published") if figure.n else (implied_n(figure), "n implied by the interval")
    if n is None:
        return PublishedCounts(figure=figure, counts=None, basis="neither n nor an interval published")
    return PublishedCounts(figure=figure, counts=Proportion(k=round(figure.rate * n), n=n), basis=basis)


def implied_n(figure: Figure) -> int | None:
    """Estimate the number of trials behind a published rate from its published interval.

    A number of trials fits if its Jeffreys interval equals the published interval after rounding. Return 1,000 if this
    number fits, and otherwise the number that fits best. Return None if no number up to ``MOST_N`` fits, or if the rate
    or the interval was not published.
    """
    if figure.rate is None or figure.low is None or figure.high is None:
        return None
    n = np.arange(1, MOST_N + 1)
    low, high = intervals(np.round(figure.rate * n), n, "jeffreys")
    misses = np.abs(low - figure.low) + np.abs(high - figure.high)
    fits = misses <= 0.0015  # the rate and both ends were rounded to a tenth of a percent
    if fits[USUAL_N - 1]:
        return USUAL_N
    return int(n[np.argmin(misses)]) if fits.any() else None
