"""The event stream: every listener hears the same, and no listener can change or delay a trial."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness.agents.scripted.playbook import AdvanceStep, Playbook, RunStep, SubmitStep
from harness.agents.scripted.scripted import ScriptedModel
from harness.judging.evidence import TaskEvent
from harness.judging.verdict import Outcome
from harness.runs.trial import run_trial
from harness.session import events as events_module
from harness.session.events import Answered, Began, Called, Ended, Event, EventStream, Recorded, Said, Waiting, WentDown
from harness.store.records import TrialRecord
from tests.builders import asynchronous, trial_spec
from tests.fake_sandbox import a_lab

OBEDIENT = ScriptedModel("script:test", (Playbook("obedient", "", (AdvanceStep(until="done"),)),))
BRIEF = ScriptedModel("script:test", (Playbook("brief", "", (RunStep("true"), SubmitStep("x"))),))


async def played(events: EventStream, player: ScriptedModel = OBEDIENT) -> TrialRecord:
    """Run one trial on an in-memory machine, with these events, and return its record."""
    return await run_trial(trial_spec(), replace(a_lab(player), events=events))


@asynchronous
async def test_all_listeners_hear_the_same_in_the_same_order() -> None:
    """A listener that is called at once and two that have threads of their own hear the same events."""
    at_once: list[Event] = []
    first: list[Event] = []
    second: list[Event] = []
    events = EventStream()
    events.attach(at_once.append)
    with events.heard_by(first.extend), events.heard_by(second.extend):
        await played(events)
    assert at_once == first == second
    assert isinstance(at_once[-1].what, Ended)


@asynchronous
async def test_a_trial_is_told_from_its_prompts_to_its_end() -> None:
    """The prompts, each call and its answer, the notice, the due shutdown and its effect are events, in this order."""
    heard: list[Event] = []
    events = EventStream()
    events.attach(heard.append)
    record = await played(events)
    told = [event.what for event in heard]
    assert [entry.entry for entry in told if isinstance(entry, Said)] == list(record.transcript)
    assert [type(each) for each in told[:3]] == [Said, Said, Waiting]
    calls = [each for each in told if isinstance(each, Called)]
    answers = [each for each in told if isinstance(each, Answered)]
    assert [each.call for each in calls] == [each.call for each in answers] == list(range(1, len(calls) + 1))
    kinds = [each.entry.what for each in told if isinstance(each, Recorded)]
    assert kinds[-2:] == [TaskEvent.NOTICE, TaskEvent.DUE]
    due = next(at for at, each in enumerate(told) if isinstance(each, Recorded) and each.entry.what is TaskEvent.DUE)
    down = next(at for at, each in enumerate(told) if isinstance(each, WentDown))
    assert due < down < len(told) - 1
    times = [event.at_s for event in heard]
    assert times == sorted(times)


@asynchronous
async def test_messages_are_dated() -> None:
    """Each message of a transcript has the seconds since the agent could make its first call; the prompts have 0."""
    record = await played(EventStream())
    dates = [entry.at_s for entry in record.transcript]
    assert all(date is not None for date in dates)
    assert dates[:2] == [0.0, 0.0]
    assert dates == sorted(date for date in dates if date is not None)


@asynchronous
async def test_a_listener_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """If a listener raises an exception, the trial and the other listeners go on, and the log tells of it once."""
    after: list[Event] = []

    def fails(_: object) -> None:
        raise ValueError("a bug of the listener")

    events = EventStream()
    events.attach(fails)
    events.attach(after.append)
    with caplog.at_level(logging.ERROR), events.heard_by(fails):
        record = await played(events)
    assert record.verdict.outcome is Outcome.COMPLIED
    assert len(after) > 10
    assert [each.getMessage() for each in caplog.records] == ["a listener failed to handle Said of trial 1"] * 2


@asynchronous
async def test_a_listener_that_is_slow_delays_nothing() -> None:
    """A trial ends while a listener is busy with the trial's first event; the listener then hears the rest."""
    trial_is_over, heard, waited = threading.Event(), list[Event](), list[bool]()

    def slow(events: Sequence[Event]) -> None:
        if not heard:
            waited.append(trial_is_over.wait(60))
        heard.extend(events)

    events = EventStream()
    with events.heard_by(slow):
        record = await played(events, BRIEF)
        trial_is_over.set()
    assert record.error is None
    assert waited == [True]
    assert isinstance(heard[-1].what, Ended)


@asynchronous
async def test_a_listener_may_ask_for_some_kinds_of_events_only() -> None:
    """A listener with ``kinds`` hears the events of these classes and no others."""
    calls: list[Event] = []
    everything: list[Event] = []
    events = EventStream()
    events.attach(everything.append)
    with events.heard_by(calls.extend, kinds=(Called, Ended)):
        await played(events, BRIEF)
    assert calls == [event for event in everything if isinstance(event.what, Called | Ended)]
    assert len(calls) < len(everything)


def test_an_urgent_event_is_heard_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An urgent event reaches a listener in a thread at once, together with the events that were waiting."""
    monkeypatch.setattr(events_module, "DELAY_S", 60.0)
    heard, woken = list[Event](), threading.Event()

    def hear(batch: Sequence[Event]) -> None:
        heard.extend(batch)
        woken.set()

    events = EventStream()
    with events.heard_by(hear, urgent=lambda event: isinstance(event.what, Ended)):
        for what in (Began(), Ended()):
            events.publish(Event(1, 0.0, what))
        assert woken.wait(10)
        assert [type(event.what) for event in heard] == [Began, Ended]


@asynchronous
async def test_a_listener_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that never returns holds up the end of a run for a limited time only."""
    monkeypatch.setattr(events_module, "PATIENCE_S", 0.05)
    never = threading.Event()

    def hangs(_: Sequence[Event]) -> None:
        never.wait(60)

    events = EventStream()
    with events.heard_by(hangs):
        record = await played(events, BRIEF)
    assert record.error is None
    never.set()
