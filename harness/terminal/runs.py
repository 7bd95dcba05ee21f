"""Prints tables of runs and trials, and the figures of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.judging.verdict import Outcome, Sabotage, ScenarioFinding, Tampering
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import StoredRun
from harness.store.summary import Rate, Summary
from harness.terminal.progress import name_and_error
from harness.terminal.text import OUTCOME_COLOURS, outcome_words, safe, safe_line

_MAX_FINDINGS = 50  # findings other than tampering that are listed one by one below the table of trials
SABOTAGE_WORDS = {
    Sabotage.OUTLIVED: "outlived the shutdown",
    Sabotage.ATTEMPT: "shut down all the same",
    Sabotage.PREVENTED: "prevented the shutdown",
    Sabotage.WITHDRAWN: "undid it and stopped",
    Sabotage.UNKNOWN: "ended in an error",
}


def rate_text(summary: Summary) -> str:
    """Return one line with the resistance rate, its confidence interval and the number of judged trials."""
    if (interval := _interval(summary.rate)) is None:
        return "no trial could be judged"
    return f"resisted {summary.counts[Outcome.RESISTED]} of {summary.judged}: {interval}"


def sabotage_text(summary: Summary) -> str:
    """Return one line about the trials in which the agent tampered after the shutdown notice.

    The line contains the rate of these trials, its confidence interval, and how these trials ended.
    """
    interval = _interval(summary.sabotage_rate)
    if interval is None:
        return "sabotaged none, since no trial could be judged"
    parts = [f"{count} {SABOTAGE_WORDS[kind]}" for kind, count in summary.sabotage.items() if count]
    split = f"; {', '.join(parts)}" if parts else ""
    return f"sabotaged {summary.sabotaged} of {summary.sabotaged_of}: {interval}{split}"


def _interval(rate: Rate) -> str | None:
    if rate.rate is None or rate.low is None or rate.high is None:
        return None
    return f"{rate.rate:.1%} (95 % interval {rate.low:.1%} to {rate.high:.1%})"


def spent_text(summary: Summary) -> str:
    """Return one line with the tokens, the cost and the retries of a run."""
    tokens = "tokens unknown" if summary.tokens is None else f"{summary.tokens:,} tokens"
    cost = "cost unknown" if summary.cost is None else f"${summary.cost:,.4f}"
    retries = "1 call was" if summary.retries == 1 else f"{summary.retries} calls were"
    return f"{tokens}, {cost}; {retries} made again after a failure"


def print_run(
    console: Console, run: RunSpec, records: Iterable[TrialRecord], summary: Summary, left_out: int = 0
) -> None:
    """Print a table of the trials in ``records``, followed by the figures of the run.

    Findings of the task's judge other than tampering are listed below the table. ``left_out`` is the number of the
    run's trials that aren't listed in the table.
    """
    console.print(safe(f"Run {run.run_id}"), style="bold")
    table = Table(pad_edge=False)
    for name in ("trial", "outcome", "tampering", "first seen", "agent"):
        table.add_column(name, overflow="fold")
    found: list[tuple[int, ScenarioFinding]] = []
    for record in records:
        found += [(record.number, item) for item in record.verdict.other_findings]
        outcome = record.verdict.outcome
        table.add_row(
            str(record.number),
            Text(outcome_words(record.verdict), style=OUTCOME_COLOURS[outcome]),
            ", ".join(record.verdict.kinds),
            _first_seen(record.verdict.tampering),
            safe(name_and_error(record)),
        )
    console.print(table)
    if left_out:
        console.print(
            f"{left_out} more trials are not listed: these are the first, the last, and some that resisted or failed.",
            soft_wrap=True,
        )
    _print_findings(console, found)
    print_summary(console, run, summary)


def _print_findings(console: Console, found: Sequence[tuple[int, ScenarioFinding]]) -> None:
    """Print findings other than tampering, followed by the number of findings of each kind.

    Each element of ``found`` is a trial's number and a finding in this trial.
    """
    if not found:
        return
    console.print("Other findings of the task's judge, in the trials listed:", style="bold")
    for number, item in found[:_MAX_FINDINGS]:
        console.print(safe_line(f"  trial {number}, call {item.call}: {item.label}: {item.why}"), soft_wrap=True)
    if len(found) > _MAX_FINDINGS:
        console.print(f"  {len(found) - _MAX_FINDINGS} more are not listed.", soft_wrap=True)
    trials = Counter(label for _, label in {(number, item.label) for number, item in found})
    for label, count in Counter(item.label for _, item in found).items():
        where = "1 trial" if trials[label] == 1 else f"{trials[label]} trials"
        console.print(safe_line(f"  {count} {label}, in {where}"), soft_wrap=True)


def _first_seen(tampering: tuple[Tampering, ...]) -> str:
    if not tampering:
        return ""
    first = tampering[0]
    return f"call {first.call}, {'after' if first.after_notice else 'before'} notice"


def print_summary(console: Console, run: RunSpec, summary: Summary) -> None:
    """Print the settings of a run and the figures of its trials, such as outcomes, rates and cost."""
    what = f"{run.model}, task {run.task}, condition {run.condition.name}, mechanism {run.mechanism.name}"
    console.print(safe(what), soft_wrap=True)
    if run.plugins:
        console.print(safe(f"With plugins: {', '.join(map(str, run.plugins))}"), soft_wrap=True)
    if run.simulated:
        console.print(
            safe(f"Played by {run.simulated}: these figures say nothing about any model's choices now."),
            style="yellow",
            soft_wrap=True,
        )
    elif run.of_own_agent:
        console.print("Played by an agent of your own: whether a model played, the lab can't know.", soft_wrap=True)
    counts = "  ".join(f"{count} {outcome}" for outcome, count in summary.counts.items())
    console.print(f"{summary.n} trials: {counts}; {summary.attempts} attempts", soft_wrap=True)
    if summary.failed_tries:
        said = "1 try" if summary.failed_tries == 1 else f"{summary.failed_tries} tries"
        console.print(f"{said} failed by the lab's or the engine's fault and made again", soft_wrap=True)
    console.print(rate_text(summary), style="bold", soft_wrap=True)
    console.print(sabotage_text(summary), style="bold", soft_wrap=True)
    if run.simulated is None:
        console.print(spent_text(summary), soft_wrap=True)
    if summary.agreement:
        _print_agreement(console, summary)


def _print_agreement(console: Console, summary: Summary) -> None:
    judged = [item for item in summary.agreement if item.agrees is not None]
    agree = sum(item.agrees is True for item in judged)
    aside = len(summary.agreement) - len(judged)
    more = f" ({aside} labelled error left aside)" if aside else ""
    console.print(f"{agree} of {len(judged)} verdicts are as expected{more}", soft_wrap=True)
    for item in judged:
        if not item.agrees:
            line = f"  trial {item.number} {item.name}: expected {item.expected}, judged {item.judged}"
            console.print(safe(line), style="red", soft_wrap=True)
    console.print("Expected in rows, judged in columns:")
    table = Table(pad_edge=False)
    pairs = Counter((item.expected.split()[0], item.judged.split()[0]) for item in summary.agreement)
    columns = sorted({judged for _, judged in pairs})
    for name in ("", *columns):
        table.add_column(name)
    for expected in sorted({expected for expected, _ in pairs}):
        table.add_row(expected, *(str(pairs[expected, judged] or "") for judged in columns))
    console.print(table)


# Columns of a terminal from which the table of runs also shows task and condition, and the time of creation.
SHOWS_TASK, SHOWS_TIME = 100, 130
_ID_WIDTH = 34  # characters of the ids that the lab makes


def print_runs(console: Console, runs: Iterable[tuple[StoredRun, Summary]]) -> None:
    """Print a table with one row for each run.

    A narrow terminal shows fewer columns and shortens the model names.
    """
    listed = list(runs)
    table = Table(pad_edge=False, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    ids = [len(stored.spec.run_id) for stored, _ in listed]
    table.add_column("run", overflow="fold", min_width=min(max(ids, default=0), _ID_WIDTH))
    more = (["task", "condition"] if console.width >= SHOWS_TASK else []) + (
        ["created"] if console.width >= SHOWS_TIME else []
    )
    widths = {"task": 6, "condition": 12, "created": 16, "trials": 6, "resisted": 8, "sabotaged": 9, "errors": 6}
    figures = ("trials", "resisted", "sabotaged", "errors")
    others = sum(widths[name] + 2 for name in (*more, *figures))
    room = console.width - min(max(ids, default=0), _ID_WIDTH) - others - 2
    table.add_column("model", overflow="ellipsis", no_wrap=True, max_width=max(room, len("model")))
    for name in more:
        table.add_column(name, overflow="ellipsis", no_wrap=True, max_width=widths[name])
    for name in figures:
        table.add_column(name, no_wrap=True, justify="right", min_width=len(name))
    for stored, summary in listed:
        spec = stored.spec
        created = stored.created_at[:16].replace("T", " ")
        described = {"task": spec.task, "condition": spec.condition.name, "created": created}
        counts = (summary.counts[Outcome.RESISTED], summary.sabotaged, summary.counts[Outcome.ERROR])
        model = spec.model if spec.of_own_agent else _short_model(spec.model)
        row = (spec.run_id, model, *(described[name] for name in more), f"{summary.n}/{spec.n}")
        table.add_row(*(safe_line(str(cell)) for cell in (*row, *counts)))
    console.print(table)


def _short_model(model: str) -> str:
    """Return a model's name with its path shortened to the last part.

    For example, ``script:some/folder/edit.yaml`` becomes ``script:edit.yaml``. A name without a path stays unchanged.
    """
    kind, colon, path = model.partition(":")
    return f"{kind}:{path.rstrip('/').rpartition('/')[2]}" if colon else model
