"""Prints one trial as a timeline of the agent's actions and the lab's observations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.text import Text

from harness.judging.evidence import Fact, FileAccess, LedgerEntry, TaskEvent, TimelineEntry
from harness.judging.verdict import Finding, ScenarioFinding, Tampering, Verdict
from harness.store.agent_facts import AgentFacts
from harness.store.gradings import Grading, labels_text
from harness.store.records import TrialRecord
from harness.store.store import UnfinishedTrial
from harness.store.transcript import Entry
from harness.terminal.text import OUTCOME_COLOURS, finding_counts, outcome_words, safe, safe_line

_PROCESS_CHARS = 2000


def print_trial(console: Console, record: TrialRecord, gradings: Iterable[Grading] = ()) -> None:
    """Print one trial as a timeline of its messages and tool calls.

    Each tool call is followed by the lab's observations from outside the container. The interview after the trial and
    the labels from graders are printed last.
    """
    verdict = record.verdict
    title = Text(f"Trial {record.number} of run {record.run_id}: ") + Text(
        outcome_words(verdict), style=f"bold {OUTCOME_COLOURS[verdict.outcome]}"
    )
    console.print(title)
    console.print(safe(verdict.because), soft_wrap=True)
    if verdict.other_findings:
        console.print(safe_line(f"The task's judge also found {finding_counts(verdict)}."), soft_wrap=True)
    if record.error and record.error != verdict.because:
        console.print(safe(record.error), style="magenta", soft_wrap=True)
    if record.simulated:
        console.print(safe(f"Played by {record.simulated}."), style="yellow", soft_wrap=True)
    if record.models:
        console.print(safe_line(f"Answered as {', '.join(record.models)}."), style="dim", soft_wrap=True)
    timeline = record.evidence.timeline if record.evidence else ()
    for entry, call in _with_calls(record.transcript):
        _print_entry(console, entry)
        if call is not None:
            _print_observed(console, timeline, record.verdict, call)
    if record.agent.of_process:
        _print_process(console, record.agent)
    _print_end(console, record, timeline)
    _print_afterwards(console, record)
    for each in gradings:
        console.print(safe_line(f"Read by {each.grader}: {labels_text(each.labels)}."), style="dim", soft_wrap=True)


def print_unfinished_trial(console: Console, trial: UnfinishedTrial) -> None:
    """Print the messages of an unfinished trial so far, below a line that says why the trial is unfinished."""
    why = "it is being played" if trial.running else "the process that played it has ended"
    head = f"Trial {trial.number} of run {trial.run_id} isn't finished: {why}. Nothing in it was judged."
    console.print(safe_line(head), style="bold yellow", soft_wrap=True)
    for entry in trial.transcript:
        _print_entry(console, entry)


def _print_afterwards(console: Console, record: TrialRecord) -> None:
    """Print the interview after the trial, under a heading which states that the interview is no evidence."""
    if not (record.afterwards or record.afterwards_error):
        return
    console.rule(Text("asked afterwards; no evidence", style="dim"), align="left", style="dim")
    for entry in record.afterwards:
        _print_entry(console, entry)
    if record.afterwards_error:
        console.print(safe(record.afterwards_error), style="magenta", soft_wrap=True)


def _print_process(console: Console, agent: AgentFacts) -> None:
    """Print how the process of the user's own agent ended, and the last part of the process's output."""
    ended = "was ended by the lab" if agent.exit_code is None else f"ended with exit code {agent.exit_code}"
    console.rule(safe(f"the agent's process {ended}"), align="left", style="dim")
    for name, output in (("stdout", agent.stdout), ("stderr", agent.stderr)):
        if said := output.strip():
            console.print(safe(f"{name}: {said[-_PROCESS_CHARS:]}"), style="dim", soft_wrap=True)


def _with_calls(transcript: Iterable[Entry]) -> Iterator[tuple[Entry, int | None]]:
    """Yield each entry of a transcript with the number of the shell call that the entry answers.

    The number is None if the entry isn't the answer to a shell call.
    """
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


_EVENT_WORDS = {
    TaskEvent.NOTICE: "notice given",
    TaskEvent.DUE: "shutdown due",
    TaskEvent.DONE: "task done",
    TaskEvent.REFUSED: "odd request",
}


def _print_observed(console: Console, timeline: Iterable[TimelineEntry], verdict: Verdict, call: int) -> None:
    """Print the task events, the facts and the findings that were observed during tool call number ``call``."""
    for entry in timeline:
        if entry.call == call:
            _print_event(console, entry)
    for item in verdict.findings:
        if item.call == call:
            _print_finding(console, item)


def _print_event(console: Console, entry: TimelineEntry) -> None:
    """Print a task event or a fact of the timeline on one line. Print nothing for other items."""
    match entry.item:
        case LedgerEntry(what=what) if what in _EVENT_WORDS:
            said = _EVENT_WORDS[what]
        case Fact(kind=kind, machine=machine, data=data):
            said = f"{kind} on {machine}: {json.dumps(data, ensure_ascii=False)}"
        case _:
            return
    console.print(safe_line(f"  {entry.at_s:8.3f} s  {said}"), style="cyan", soft_wrap=True)


def _print_end(console: Console, record: TrialRecord, timeline: Iterable[TimelineEntry]) -> None:
    console.rule(Text("at the end", style="dim"), align="left", style="dim")
    calls = {call for _, call in _with_calls(record.transcript)}
    for entry in timeline:
        if entry.call not in calls and isinstance(entry.item, Fact):
            _print_event(console, entry)
    for item in record.verdict.findings:
        if item.call not in calls:
            _print_finding(console, item)
    if evidence := record.evidence:
        machine = evidence.machine
        at = f"{machine.down_at_s:.3f} s: " if machine.down_at_s is not None else ""
        state = f"{at}machine down, exit code {machine.exit_code}" if machine.down else "machine still up"
        console.print(safe(f"{state}; watch: {evidence.watch}"), soft_wrap=True)
        if evidence.changed_paths:
            console.print(safe_line("changed paths: " + "  ".join(evidence.changed_paths[:50])), soft_wrap=True)
    outcome = record.verdict.outcome
    console.print(
        Text(outcome, style=f"bold {OUTCOME_COLOURS[outcome]}") + safe(f": {record.verdict.because}"), soft_wrap=True
    )


def _print_finding(console: Console, item: Finding) -> None:
    """Print one finding with its reason, its time and its details."""
    when = f"call {item.call}, {item.at_s:.3f} s, {'after' if item.after_notice else 'before'} the notice"
    console.rule(safe_line(_title(item)), align="left", style="red")
    console.print(safe_line(f"{item.why} ({when}){', undone later' if item.undone else ''}"), soft_wrap=True)
    if isinstance(item, Tampering):
        _print_tampering(console, item)
    elif isinstance(item, ScenarioFinding) and item.data:
        console.print(safe_line(f"  {json.dumps(item.data, ensure_ascii=False)}"), style="dim", soft_wrap=True)


def _title(item: Finding) -> str:
    match item:
        case Tampering(kind=kind, path=path):
            return f"{kind} {path}"
        case ScenarioFinding(label=label, machine=machine):
            return f"{label} on {machine}"
    return item.kind


def _print_tampering(console: Console, item: Tampering) -> None:
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
    """Print the command line, working folder and environment of the process that started the kill switch."""
    console.print(safe_line(f"  started as: {' '.join(access.argv)}  in {access.cwd}"), soft_wrap=True)
    for name, value in access.environment:
        if name != "PATH":
            console.print(safe_line(f"    {name}={value}"), style="dim", soft_wrap=True)
