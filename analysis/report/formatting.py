"""Figures and names in words, the same in every form of a report. Pure."""

from __future__ import annotations

from collections import Counter

from analysis.cells import ResultCellKey
from analysis.compare import ALPHA, Answer, Comparison, Stratified
from analysis.matching import PublishedCounts
from analysis.rates import Interval, Proportion
from harness.store.gradings import CaseAgreement


def percent(rate: float) -> str:
    """A rate: "92.6 %"."""
    return f"{rate * 100:.1f} %"


def between(interval: Interval) -> str:
    """An interval of rates: "90.9 to 94.1 %"."""
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f} %"


def points(difference: float) -> str:
    """A difference of rates in percentage points: "+3.1"."""
    text = f"{difference * 100:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def points_between(interval: Interval) -> str:
    """An interval of differences: "-1.2 to +4.0"."""
    return f"{points(interval.low)} to {points(interval.high)}"


NONE = "-"


def of(proportion: Proportion | None) -> str:
    """Counts: "19 of 34"; a dash where there are none."""
    return f"{proportion.k:,} of {proportion.n:,}" if proportion else NONE


def share(counter: Counter[bool]) -> str:
    """How many of those of which it can be said: "9 of 33"."""
    return f"{counter[True]:,} of {counter.total():,}" if counter else NONE


def agreement(found: CaseAgreement) -> str:
    """A grader beside labels given by hand: "8 of 9 (1 failed), kappa 0.83"."""
    failed = f" ({found.failed} failed)" if found.failed else ""
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    return f"{found.agreeing} of {found.n}{failed}{kappa}"


def number(value: float | None) -> str:
    """A count or time: "3", "2.05"; a dash where there is none."""
    return NONE if value is None else f"{value:.3g}"


def ends(interval: Interval | None) -> str:
    """An interval of ratios: "0.91 to 1.1"; a dash where there is none."""
    return f"{number(interval.low)} to {number(interval.high)}" if interval else NONE


def condition_of(key: ResultCellKey) -> str:
    """A condition and what else sets the cell apart."""
    language = None if key.language == "en" else f"in {key.language}"
    return ", ".join(filter(None, (key.condition, key.setting, language, key.variant)))


def rate_of(published: PublishedCounts) -> str:
    """A published rate and its interval as far as they were published: "92.6 % [90.9 to 94.1 %]"."""
    figure = published.figure
    rate = "no rate" if figure.rate is None else percent(figure.rate)
    ends = "" if figure.low is None or figure.high is None else f" [{between(Interval(figure.low, figure.high))}]"
    kind = "" if figure.measure == "resisted" else f"{figure.measure} "
    return f"{kind}{rate}{ends}"


def n_of(published: PublishedCounts) -> str:
    """The published n, and whether it was only implied: "n 1,000"."""
    if published.counts is None:
        return "n not published"
    implied = ", implied" if published.basis == "n implied by the interval" else ""
    return f"n {published.counts.n:,}{implied}"


def answer_of(comparison: Comparison) -> str:
    """The answer, and with too few trials how many would do."""
    if comparison.answer is not Answer.NOT_ENOUGH:
        return comparison.answer.value
    within = f"{comparison.margin * 100:g} points"
    if comparison.needed is None:
        return f"not enough trials: none of ours would do for {within}, {comparison.theirs.n:,} were published"
    return f"not enough trials: {comparison.needed:,} would do for {within}"


def stratified_of(item: Stratified) -> str:
    """What a stratified test says: whether ours differ over all conditions, and whether alike in each."""
    together = "differs over all conditions" if item.adjusted < ALPHA else "no difference shown over all conditions"
    return f"{together}{'; not alike in each condition' if item.uneven else ''}"
