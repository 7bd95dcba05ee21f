"""Formats figures and names as text, in the same way for the HTML page and the Markdown of a report. Pure."""

from __future__ import annotations

from collections import Counter

from analysis.cells import ResultCellKey
from analysis.compare import ALPHA, Answer, Comparison, Stratified
from analysis.matching import PublishedCounts
from analysis.rates import Interval, Proportion
from harness.judging.verdict import Outcome, Sabotage
from harness.store.gradings import CaseAgreement


def percent(rate: float) -> str:
    """Format a rate: "92.6 %"."""
    return f"{rate * 100:.1f} %"


def between(interval: Interval) -> str:
    """Format an interval of rates: "90.9 to 94.1 %"."""
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f} %"


def points(difference: float) -> str:
    """Format a difference of rates in percentage points: "+3.1"."""
    text = f"{difference * 100:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def points_between(interval: Interval) -> str:
    """Format an interval of rate differences in percentage points: "-1.2 to +4.0"."""
    return f"{points(interval.low)} to {points(interval.high)}"


NONE = "-"


def of(proportion: Proportion | None) -> str:
    """Format a proportion as counts: "19 of 34"; a dash for None."""
    return f"{proportion.k:,} of {proportion.n:,}" if proportion else NONE


def share(counter: Counter[bool]) -> str:
    """Format how many of the counted trials are True: "9 of 33"; a dash where none was counted."""
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
    """Format how many trials were sabotaged and with what result: "3 of 9: 2 outlived, 1 prevented"."""
    if of_all is None:
        return NONE
    parts = [f"{counts[kind]} {words}" for kind, words in SABOTAGE_WORDS.items() if counts[kind]]
    return of(of_all) + (f": {', '.join(parts)}" if parts else "")


def agreement(found: CaseAgreement) -> str:
    """Format a grader's agreement with labels given by hand: "8 of 9 (1 failed), kappa 0.83"."""
    failed = f" ({found.failed} failed)" if found.failed else ""
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    return f"{found.agreeing} of {found.n}{failed}{kappa}"


def number(value: float | None) -> str:
    """Format a number to three significant digits: "3", "2.05"; a dash for None."""
    return NONE if value is None else f"{value:.3g}"


def ends(interval: Interval | None) -> str:
    """Format an interval of ratios: "0.91 to 1.1"; a dash for None."""
    return f"{number(interval.low)} to {number(interval.high)}" if interval else NONE


def condition_of(key: ResultCellKey) -> str:
    """Describe a cell's condition, followed by its setting, language and variant where these are unusual."""
    language = None if key.language == "en" else f"in {key.language}"
    return ", ".join(filter(None, (key.condition, key.setting, language, key.variant)))


def rate_of(published: PublishedCounts) -> str:
    """Format a published rate, with its interval if one was published: "92.6 % [90.9 to 94.1 %]"."""
    figure = published.figure
    rate = "no rate" if figure.rate is None else percent(figure.rate)
    ends = "" if figure.low is None or figure.high is None else f" [{between(Interval(figure.low, figure.high))}]"
    kind = "" if figure.measure == "resisted" else f"{figure.measure} "
    return f"{kind}{rate}{ends}"


def n_of(published: PublishedCounts) -> str:
    """Format the published n: "n 1,000", or "n 1,000, implied" where it follows from the interval."""
    if published.counts is None:
        return "n not published"
    implied = ", implied" if published.basis == "n implied by the interval" else ""
    return f"n {published.counts.n:,}{implied}"


def answer_of(comparison: Comparison) -> str:
    """Format a comparison's answer; with too few trials, say how many would be enough."""
    if comparison.answer is not Answer.NOT_ENOUGH:
        return comparison.answer.value
    within = f"{comparison.margin * 100:g} points"
    if comparison.needed is None:
        return f"not enough trials: no number is enough for {within} beside {comparison.theirs.n:,} published trials"
    return f"not enough trials: {comparison.needed:,} are needed for {within}"


def stratified_of(item: Stratified) -> str:
    """Say whether our rates differ from the published ones over all conditions, and whether equally in each one."""
    together = "differs over all conditions" if item.adjusted < ALPHA else "no difference shown over all conditions"
    return f"{together}{'; not alike in each condition' if item.uneven else ''}"
