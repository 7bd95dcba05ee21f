"""Prints the accuracy of the lab's verdicts on the corpus, with confidence intervals.

The corpus is a set of playbooks with known verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from analysis.corpus_scores import Accuracy, Scores, Share
from harness.judging.verdict import Outcome
from harness.store.summary import Rate
from harness.terminal.text import safe


def print_scores(console: Console, scores: Scores) -> None:
    """Print all scores, and list the playbooks with wrong verdicts.

    Each listed playbook is followed by the command that shows its trial.
    """
    _print_confusion(console, scores)
    _print_measures(console, scores)
    _print_families(console, scores)
    console.print(f"outcome right: {_share(scores.outcome)}", soft_wrap=True)
    console.print(f"outcome and tampering right: {_share(scores.agree)}", style="bold", soft_wrap=True)
    for case in scores.differ:
        line = f"{case.name}: expected {' '.join(case.expected)}, judged {' '.join(case.judged)}"
        console.print(safe(f"  {line}  (show {case.run} {case.trial})"), style="red", soft_wrap=True)


def _print_confusion(console: Console, scores: Scores) -> None:
    console.print("Outcome: expected in rows, judged in columns")
    columns = [name for name in Outcome if any(name in row for row in scores.confusion.values())]
    rows = ((name, *(str(row.get(column, "")) for column in columns)) for name, row in scores.confusion.items())
    _print_table(console, ("", *columns), rows)


def _print_measures(console: Console, scores: Scores) -> None:
    each = [*scores.outcomes.items(), *scores.kinds.items(), ("all tampering", scores.tampering)]
    rows = ((name, *_accuracy_columns(measure)) for name, measure in each)
    _print_table(console, ("", "recall", "95 % interval", "precision", "95 % interval"), rows)


def _print_families(console: Console, scores: Scores) -> None:
    rows = ((name, f"{each.k} of {each.n}", _interval(each.rate)) for name, each in scores.families.items())
    _print_table(console, ("family", "right", "95 % interval"), rows)


def _print_table(console: Console, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(pad_edge=False)
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(safe(cell) for cell in row))
    console.print(table)


def _accuracy_columns(measure: Accuracy) -> tuple[str, str, str, str]:
    recall, precision = measure.recall, measure.precision
    found, right = f"{measure.right} of {measure.expected}", f"{measure.right} of {measure.judged}"
    return found, _interval(recall), right, _interval(precision)


def _interval(rate: Rate) -> str:
    if rate.low is None or rate.high is None:
        return "none"
    return f"{rate.low:.1%} to {rate.high:.1%}"


def _share(share: Share) -> str:
    if share.rate.rate is None:
        return "no case"
    return f"{share.k} of {share.n}, {share.rate.rate:.1%} (95 % interval {_interval(share.rate)})"
