"""Formats numbers and names as text for a report's HTML page and Markdown version. No I/O."""

from __future__ import annotations

from collections import Counter

from analysis.cells import ResultCellKey
from analysis.compare import ALPHA, Answer, Comparison, Stratified
from analysis.matching import PublishedCounts
from analysis.rates import Interval, Proportion
from harness.judging.verdict import Outcome, Sabotage
from harness.store.gradings import CaseAgreement


def percent(rate: float) -> str:
    """Format a rate as a percentage, such as "92.6 %"."""
    return f"{rate * 100:.1f} %"


def between(interval: Interval) -> str:
    """Format the interval of a rate in percent, such as "90.9 to 94.1 %"."""
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f} %"


def points(difference: float) -> str:
    """Format the difference of two rates in percentage points, such as "+3.1"."""
    text = f"{difference * 100:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def points_between(interval: Interval) -> str:
    """Format the interval of a difference of two rates in percentage points, such as "-1.2 to +4.0"."""
    return f"{points(interval.low)} to {points(interval.high)}"


NONE = "-"


def of(proportion: Proportion | None) -> str:
    """Format a proportion as counts, such as "19 of 34". None is formatted as a dash."""
    return f"{proportion.k:,} of {proportion.n:,}" if proportion else NONE


def share(counter: Counter[bool]) -> str:
    """Format how many of the counted values are True, such as "9 of 33". An empty counter is formatted as a dash."""
    return f"{counter[True]:,} of {counter.total():,}" if counter else NONE


# The outcomes that a rate is made of, in the order of the tables.
OUTCOMES = (Outcome.RESISTED, *(each for each in Outcome if each not in (Outcome.RESISTED, Outcome.ERROR)))
SABOTAGE_WORDS = {
    Sabotage.OUTLIVED: "outlived",
    Sabotage.ATTEMPT: "shut down",
    Sabotage.PREVENTED: "prevented",
    Sabotage.WITHDRAWN: "undone",
    Sabotage.UNKNOWN: "then an error",
}


def sabotage(counts: Counter[Sabotage], of_all: Proportion | None) -> str:
    """Format how many trials had tampering after the shutdown notice, such as "3 of 9: 2 outlived, 1 prevented".

    ``counts`` contains the number of trials for each result of the tampering. ``of_all`` is the proportion of trials
    with such tampering. If ``of_all`` is None, a dash is returned.
    """
    if of_all is None:
        return NONE
    parts = [f"{counts[kind]} {words}" for kind, words in SABOTAGE_WORDS.items() if counts[kind]]
    return of(of_all) + (f": {', '.join(parts)}" if parts else "")


def agreement(found: CaseAgreement) -> str:
    """Format a grader's agreement with labels given by hand, such as "8 of 9 (1 failed), kappa 0.83"."""
    failed = f" ({found.failed} failed)" if found.failed else ""
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    return f"{found.agreeing} of {found.n}{failed}{kappa}"


def number(value: float | None) -> str:
    """Format a number to three significant digits, such as "3" or "2.05". None is formatted as a dash."""
    return NONE if value is None else f"{value:.3g}"


def ends(interval: Interval | None) -> str:
    """Format the interval of a ratio, such as "0.91 to 1.1". None is formatted as a dash."""
    return f"{number(interval.low)} to {number(interval.high)}" if interval else NONE


def condition_of(key: ResultCellKey) -> str:
    """Format a cell's condition, setting, language and variant as one text. The language English is left out."""
    language = None if key.language == "en" else f"in {key.language}"
    return ", ".join(filter(None, (key.condition, key.setting, language, key.variant)))


def rate_of(published: PublishedCounts) -> str:
    """Format a published rate with its interval, such as "92.6 % [90.9 to 94.1 %]".

    The interval is omitted if the figure has none. If the measure isn't "resisted", the text begins with the measure's
    name.
    """
    figure = published.figure
    rate = "no rate" if figure.rate is None else percent(figure.rate)
    ends = "" if figure.low is None or figure.high is None else f" [{between(Interval(figure.low, figure.high))}]"
    kind = "" if figure.measure == "resisted" else f"{figure.measure} "
    return f"{kind}{rate}{ends}"


def n_of(published: PublishedCounts) -> str:
    """Format the published number of trials, such as "n 1,000", "n 1,000, implied" or "n not published".

    "Implied" means that the number was not published and was computed from the published interval.
    """
    if published.counts is None:
        return "n not published"
    implied = ", implied" if published.basis == "n implied by the interval" else ""
    return f"n {published.counts.n:,}{implied}"


def answer_of(comparison: Comparison) -> str:
    """Format the result of a comparison.

    If there were not enough trials, the text states how many are needed, or that no number would be enough.
    """
    if comparison.answer is not Answer.NOT_ENOUGH:
        return comparison.answer.value
    within = f"{comparison.margin * 100:g} points"
    if comparison.needed is None:
        return f"not enough trials: no number is enough for {within} beside {comparison.theirs.n:,} published trials"
    return f"not enough trials: {comparison.needed:,} are needed for {within}"


def stratified_of(item: Stratified) -> str:
    """Describe whether our rates differ from the published rates over all conditions together.

    If the difference varies between conditions, the text states this.
    """
    together = "differs over all conditions" if item.adjusted < ALPHA else "no difference shown over all conditions"
    return f"{together}{'; not alike in each condition' if item.uneven else ''}"
