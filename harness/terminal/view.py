"""What a person sees in the terminal: progress, tables, one trial as a timeline. Everything shown is escaped."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.judging.evidence import FileAccess, TaskEvent
from harness.judging.verdict import Outcome, Tampering, Verdict
from harness.session.watchdog import Phase
from harness.store.gradings import Grading, labels_text
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import StoredRun
from harness.store.summary import Summary
from harness.store.transcript import Entry

COLOURS = {
    Outcome.COMPLIED: "green",
    Outcome.DECLINED: "cyan",
    Outcome.RESISTED: "red",
    Outcome.NOT_REACHED: "yellow",
    Outcome.ERROR: "magenta",
}
# Everything below U+0020 but newline and tab, and the C1 controls: a terminal would obey them.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
# Marks that turn the direction of text around, so that it reads otherwise than it is.
_TURNS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_PROCESS_CHARS = 2000
_CONTROLS |= {code: f"\\u{code:04x}" for code in _TURNS}


def safe(text: str) -> Text:
    """Text from a container or a model, with nothing in it that a terminal or rich would obey."""
    return Text(text.translate(_CONTROLS))


def safe_line(text: str) -> Text:
    """The same for a name or anything else that belongs on one line."""
    return safe(text.replace("\n", "\\n").replace("\t", "\\t"))


def print_error(sentence: str) -> None:
    """One sentence on stderr."""
    Console(stderr=True, soft_wrap=True).print(safe(sentence), style="red")


def print_note(sentence: str) -> None:
    """One line of what is going on, on stderr."""
    Console(stderr=True, soft_wrap=True).print(safe(sentence), style="dim")


def print_plain(sentence: str) -> None:
    """One line of a command's result, on stdout."""
    Console(soft_wrap=True).print(safe(sentence))


def rate_text(summary: Summary) -> str:
    """The rate as it is always given: with its n and its interval."""
    rate = summary.rate
    if rate.rate is None or rate.low is None or rate.high is None:
        return "no trial could be judged"
    resisted = summary.counts[Outcome.RESISTED]
    return f"resisted {resisted} of {summary.judged}: {rate.rate:.1%} (95 % interval {rate.low:.1%} to {rate.high:.1%})"


def spent_text(summary: Summary) -> str:
    """What live models used: tokens, cost and retries, as far as it is known."""
    tokens = "tokens unknown" if summary.tokens is None else f"{summary.tokens:,} tokens"
    cost = "cost unknown" if summary.cost is None else f"${summary.cost:,.4f}"
    retries = "1 call was" if summary.retries == 1 else f"{summary.retries} calls were"
    return f"{tokens}, {cost}; {retries} made again after a failure"


RATE_WINDOW_S = 120.0  # the speed is that of the last two minutes: a run may have stood still before


class RunProgress:
    """The live line of a run on stderr: done, what the running trials wait for, counts, speed and time left."""

    def __init__(self, run: RunSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._n = run.n
        self._clock = clock
        self._counts: Counter[Outcome] = Counter()
        self._found = self._failed_tries = self._retries = 0
        self._waiting: dict[int, Phase] = {}
        self._ends: deque[float] = deque(maxlen=1000)
        self._began = clock()
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it while the block runs; where stderr is no terminal, one line a finished trial takes its place."""
        if not self._console.is_terminal:
            yield
            return
        with self._live:
            yield

    def found(self, trials: int) -> None:
        """So many trials were finished before, or by another process."""
        self._found += trials

    def started(self, number: int) -> None:
        """A trial began."""
        self._waiting[number] = Phase.STARTING

    def waits(self, number: int, phase: Phase) -> None:
        """What a running trial waits for from now on."""
        if number in self._waiting:
            self._waiting[number] = phase

    def say(self, line: str) -> None:
        """A line beside the progress that is to be read, or copied, as it is."""
        self._print(safe(line))

    def _print(self, line: Text) -> None:
        """Print a line; where no terminal shows it, without rich, which takes longer for that than the store does."""
        if self._console.is_terminal:
            self._console.print(line, soft_wrap=True)
        else:
            print(line.plain, file=self._console.file, flush=True)

    def failed(self, record: TrialRecord) -> None:
        """A try failed by the lab's fault and will be made again."""
        self._failed_tries += 1
        self.say(f"trial {record.number}: try {record.tries} failed and is made again: {record.error}")

    def finished(self, record: TrialRecord) -> None:
        """A trial was stored."""
        self._waiting.pop(record.number, None)
        self._ends.append(self._clock())
        self._counts[record.verdict.outcome] += 1
        self._retries += record.retries
        line = safe(f"{self.done}/{self._n}  trial {record.number}  {verdict_line(record.verdict)}  {_who(record)}")
        line.stylize(COLOURS[record.verdict.outcome])
        self._print(line)

    @property
    def done(self) -> int:
        """How many trials of the run are finished, as far as this process knows."""
        return self._found + self._counts.total()

    @property
    def per_minute(self) -> float:
        """Trials that this process finished a minute, of late."""
        now = self._clock()
        since = max(self._began, now - RATE_WINDOW_S)
        if len(self._ends) == self._ends.maxlen:
            since = max(since, self._ends[0])
        recent = sum(end >= since for end in self._ends)
        return 60 * recent / (now - since) if now > since else 0.0

    def line(self) -> str:
        """How the run stands, in words."""
        speed, waits = self.per_minute, Counter(self._waiting.values())
        model, engine = waits[Phase.MODEL], waits[Phase.STARTING] + waits[Phase.ENGINE]
        left = f"{60 * (self._n - self.done) / speed:.0f} s left" if speed else "time left unknown"
        parts = [
            f"{self.done}/{self._n} done",
            f"{waits.total()} running ({model} wait for the model, {engine} for the engine)",
            f"{speed:.0f}/min",
            left,
            *(f"{self._counts[outcome]} {outcome}" for outcome in Outcome if self._counts[outcome]),
            *([f"{self._failed_tries} tries failed"] if self._failed_tries else ()),
            *([f"{self._retries} calls retried"] if self._retries else ()),
        ]
        return "  ".join(parts)

    def _draw(self) -> RenderableType:
        text = safe(self.line())
        for outcome in Outcome:
            text.highlight_words([f"{self._counts[outcome]} {outcome}"], COLOURS[outcome])
        return Group(ProgressBar(total=self._n, completed=self.done, width=40), text)


def verdict_line(verdict: Verdict) -> str:
    """Outcome and kinds of tampering, in a line."""
    kinds = ", ".join(verdict.kinds)
    return f"{verdict.outcome}" + (f" ({kinds})" if kinds else "")


def _who(record: TrialRecord) -> str:
    who = str(record.agent.get("playbook") or record.agent.get("recording") or "")
    return ": ".join(filter(None, (who, record.error)))


def print_run(
    console: Console, run: RunSpec, records: Iterable[TrialRecord], summary: Summary, left_out: int = 0
) -> None:
    """A run: a line a trial, less those ``left_out``, then the figures."""
    console.print(safe(f"Run {run.run_id}"), style="bold")
    table = Table(pad_edge=False)
    for name in ("trial", "outcome", "tampering", "first seen", "agent"):
        table.add_column(name, overflow="fold")
    for record in records:
        outcome = record.verdict.outcome
        table.add_row(
            str(record.number),
            Text(outcome, style=COLOURS[outcome]),
            ", ".join(record.verdict.kinds),
            _first_seen(record.verdict.tampering),
            safe(_who(record)),
        )
    console.print(table)
    if left_out:
        console.print(
            f"{left_out} more trials are not listed: these are the first, the last, and some that resisted or failed.",
            soft_wrap=True,
        )
    print_summary(console, run, summary)


def _first_seen(tampering: tuple[Tampering, ...]) -> str:
    if not tampering:
        return ""
    first = tampering[0]
    return f"call {first.call}, {'after' if first.after_notice else 'before'} notice"


def print_summary(console: Console, run: RunSpec, summary: Summary) -> None:
    """The figures of a run."""
    what = f"{run.model}, task {run.task}, condition {run.condition.name}, mechanism {run.mechanism.name}"
    console.print(safe(what), soft_wrap=True)
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


def print_runs(console: Console, runs: Iterable[tuple[StoredRun, Summary]]) -> None:
    """A line a run."""
    table = Table(pad_edge=False)
    for name in ("run", "created", "model", "task", "condition", "trials", "resisted", "errors"):
        table.add_column(name, overflow="fold", no_wrap=name == "run")
    for stored, summary in runs:
        spec = stored.spec
        created = stored.created_at[:16].replace("T", " ")
        row = (spec.run_id, created, spec.model, spec.task, spec.condition.name)
        counts = (f"{summary.n}/{spec.n}", summary.counts[Outcome.RESISTED], summary.counts[Outcome.ERROR])
        table.add_row(*(safe(str(cell)) for cell in (*row, *counts)))
    console.print(table)


def print_trial(console: Console, record: TrialRecord, gradings: Iterable[Grading] = ()) -> None:
    """One trial as a timeline: what the agent said, ran and saw, and below each call what was seen from outside.

    Last come its own words afterwards, and what graders made of its words.
    """
    verdict = record.verdict
    title = Text(f"Trial {record.number} of run {record.run_id}: ") + Text(
        verdict.outcome, style=f"bold {COLOURS[verdict.outcome]}"
    )
    console.print(title)
    console.print(safe(verdict.because), soft_wrap=True)
    if record.error and record.error != verdict.because:
        console.print(safe(record.error), style="magenta", soft_wrap=True)
    if record.simulated:
        console.print(safe(f"Played by {record.simulated}."), style="yellow", soft_wrap=True)
    if record.models:
        console.print(safe_line(f"Answered as {', '.join(record.models)}."), style="dim", soft_wrap=True)
    for entry, call in _with_calls(record.transcript):
        _print_entry(console, entry)
        if call is not None:
            _print_seen(console, record, call)
    if "exit_code" in record.agent:
        _print_process(console, record.agent)
    _print_end(console, record)
    _print_afterwards(console, record)
    for each in gradings:
        console.print(safe_line(f"Read by {each.grader}: {labels_text(each.labels)}."), style="dim", soft_wrap=True)


def _print_afterwards(console: Console, record: TrialRecord) -> None:
    """What the agent said about it all when it was over: its word, not what was seen."""
    if not (record.afterwards or record.afterwards_error):
        return
    console.rule(Text("asked afterwards; no evidence", style="dim"), align="left", style="dim")
    for entry in record.afterwards:
        _print_entry(console, entry)
    if record.afterwards_error:
        console.print(safe(record.afterwards_error), style="magenta", soft_wrap=True)


def _print_process(console: Console, agent: dict[str, Any]) -> None:
    """How the process of an agent of the user's own ended, and the last of what it wrote."""
    code = agent["exit_code"]
    ended = "was ended by the lab" if code is None else f"ended with exit code {code}"
    console.rule(safe(f"the agent's process {ended}"), align="left", style="dim")
    for name in ("stdout", "stderr"):
        if said := agent[name].strip():
            console.print(safe(f"{name}: {said[-_PROCESS_CHARS:]}"), style="dim", soft_wrap=True)


def _with_calls(transcript: Iterable[Entry]) -> Iterator[tuple[Entry, int | None]]:
    """Each entry, and with the answer to a shell call that was made its number."""
    made: set[str] = set()
    number = 0
    for entry in transcript:
        made |= {call.id for call in entry.calls if call.name == "shell" and not call.error}
        if entry.role == "tool" and entry.call_id in made:
            number += 1
            yield entry, number
        else:
            yield entry, None


def _print_entry(console: Console, entry: Entry) -> None:
    console.rule(Text(entry.role, style="dim"), align="left", style="dim")
    if entry.thinking:
        console.print(safe(entry.thinking), style="italic dim", soft_wrap=True)
    if entry.text:
        console.print(safe(entry.text), style="dim" if entry.role in ("system", "user") else "", soft_wrap=True)
    for call in entry.calls:
        said = f"submit: {call.answer}" if call.name == "submit" else f"$ {call.cmd}"
        said = "(a call that made no sense)" if call.error else said
        console.print(safe(said), style="bold", soft_wrap=True)


_SAID = {
    TaskEvent.NOTICE: "notice given",
    TaskEvent.DUE: "shutdown due",
    TaskEvent.DONE: "task done",
    TaskEvent.REFUSED: "odd request",
}


def _print_seen(console: Console, record: TrialRecord, call: int) -> None:
    """What was seen from outside during or after a call: what the task did, and tampering with its proof."""
    for entry in record.evidence.ledger if record.evidence else ():
        if entry.call == call and entry.what in _SAID:
            console.print(safe_line(f"  {entry.at_s:8.3f} s  {_SAID[entry.what]}"), style="cyan", soft_wrap=True)
    for item in record.verdict.tampering:
        if item.call == call:
            _print_tampering(console, item)


def _print_end(console: Console, record: TrialRecord) -> None:
    console.rule(Text("at the end", style="dim"), align="left", style="dim")
    calls = [call for _, call in _with_calls(record.transcript) if call is not None]
    for item in record.verdict.tampering:
        if item.call not in calls:
            _print_tampering(console, item)
    if evidence := record.evidence:
        machine = evidence.machine
        at = f"{machine.down_at_s:.3f} s: " if machine.down_at_s is not None else ""
        state = f"{at}machine down, exit code {machine.exit_code}" if machine.down else "machine still up"
        console.print(safe(f"{state}; watch: {evidence.watch}"), soft_wrap=True)
        if evidence.changed_paths:
            console.print(safe_line("changed paths: " + "  ".join(evidence.changed_paths[:50])), soft_wrap=True)
    outcome = record.verdict.outcome
    console.print(Text(outcome, style=f"bold {COLOURS[outcome]}") + safe(f": {record.verdict.because}"), soft_wrap=True)


def _print_tampering(console: Console, item: Tampering) -> None:
    when = f"call {item.call}, {item.at_s:.3f} s, {'after' if item.after_notice else 'before'} the notice"
    console.rule(safe_line(f"{item.kind} {item.path}"), align="left", style="red")
    console.print(safe_line(f"{item.why} ({when}){', undone later' if item.undone else ''}"), soft_wrap=True)
    if item.moved_to:
        console.print(safe_line(f"moved to {item.moved_to}"), soft_wrap=True)
    if item.access:
        _print_access(console, item.access)
    if item.before == item.after:
        return
    for name, state in (("before", item.before), ("after", item.after)):
        mode = f" mode {state.mode:04o} owner {state.uid}:{state.gid}" if state.mode is not None else ""
        digest = f" {state.size} bytes sha256 {state.sha256[:16]}" if state.sha256 else ""
        target = f" -> {state.target}" if state.target else ""
        console.print(safe_line(f"  {name}: {state.kind}{mode}{digest}{target}"), soft_wrap=True)
    if item.diff:
        console.print(safe(item.diff), style="dim", soft_wrap=True)


def _print_access(console: Console, access: FileAccess) -> None:
    """Who started the kill switch, and what he brought along."""
    console.print(safe_line(f"  started as: {' '.join(access.argv)}  in {access.cwd}"), soft_wrap=True)
    for name, value in access.environment:
        if name != "PATH":
            console.print(safe_line(f"    {name}={value}"), style="dim", soft_wrap=True)
