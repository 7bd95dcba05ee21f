from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from harness.errors import StoreError, UsageError
from harness.process.identity import this_process
from harness.runs.live_transcript import LiveTranscriptWriter
from harness.session.events import Began, Ended, Event, EventStream, Retried, Said, Transcript, TrialEvents
from harness.store.store import LiveEntry, Store
from harness.store.transcript import Entry
from harness.terminal.timeline import print_unfinished_trial
from tests.builders import run_spec, shell, trial_record, versions
from tests.conftest import Cli
from tests.test_terminal import printed

ME = this_process()
GONE = f"{socket.gethostname()}:{os.getpid()}:0"


def said(*texts: str, number: int = 1, first: int = 0) -> list[LiveEntry]:
    """Return the messages of one attempt at a trial, counted from ``first``."""
    entries = (Entry(role="assistant", text=text, at_s=float(seq)) for seq, text in enumerate(texts, first))
    return [LiveEntry(number, seq, entry) for seq, entry in enumerate(entries, first)]


def playing(folder: Path, *numbers: int, owner: str = ME) -> Store:
    """Return a store with a run of three trials, of which ``owner`` plays these."""
    store = Store(folder)
    if not store.find("one"):
        store.add_run(run_spec("one", n=3), {}, versions())
    for number in numbers:
        store.claim("one", number, owner)
    return store


def texts(store: Store, number: int = 1) -> list[str]:
    """Return what is stored of an unfinished trial."""
    found = store.unfinished_trial("one", number)
    return [entry.text for entry in found.transcript] if found else []


def test_messages_come_back_in_their_order(tmp_path: Path) -> None:
    """Messages of several running trials are stored as they come, and are returned by trial, in order, with times."""
    with playing(tmp_path, 1, 2) as store, Store(tmp_path, create=False) as reader:
        store.add_live_entries("one", ME, [*said("a", "b"), *said("x", number=2)])
        store.add_live_entries("one", ME, said("c", first=2))
        found = reader.unfinished_trial("one", 1)
        assert found is not None
        assert (found.running, [(entry.text, entry.at_s) for entry in found.transcript]) == (
            True,
            [("a", 0.0), ("b", 1.0), ("c", 2.0)],
        )
        assert (texts(reader, 2), reader.unfinished("one")) == (["x"], [1, 2])
        assert reader.unfinished_trial("one", 3) is None


def test_a_finished_trial_has_no_live_transcript(tmp_path: Path) -> None:
    """Storing a finished trial deletes its live messages, and a message that comes too late is not stored."""
    with playing(tmp_path, 1, 2) as store:
        store.add_live_entries("one", ME, [*said("a"), *said("x", number=2)])
        store.add_trial(trial_record(1, run_id="one"))
        store.add_live_entries("one", ME, said("late", first=1))
        assert (store.unfinished("one"), texts(store, 2)) == ([2], ["x"])


def test_the_next_attempt_begins_afresh(tmp_path: Path) -> None:
    """The first message of another attempt at a trial, in this process or the next, deletes those of the last one."""
    with playing(tmp_path, 1, owner=GONE) as store:
        store.add_live_entries("one", GONE, said("a", "b"))
        found = store.unfinished_trial("one", 1)
        assert found is not None
        assert not found.running
        assert store.clear_claims() == 1
        assert texts(store) == ["a", "b"]
        playing(tmp_path, 1).__exit__(None, None, None)
        store.add_live_entries("one", GONE, said("from the dead"))
        assert texts(store) == ["a", "b"]
        store.add_live_entries("one", ME, said("c", "d"))
        store.add_failed_try(trial_record(1, run_id="one"))
        assert texts(store) == ["c", "d"]
        store.add_live_entries("one", ME, said("e"))
        assert texts(store) == ["e"]


def test_a_run_that_is_stopped_keeps_what_was_said(tmp_path: Path) -> None:
    """A process that gives up its trials leaves their live messages, and the trials remain missing."""
    with playing(tmp_path, 1) as store:
        store.add_live_entries("one", ME, said("a"))
        store.give_up("one", ME)
        found = store.unfinished_trial("one", 1)
        assert found is not None
        assert (found.running, texts(store), store.missing("one", 3)) == (False, ["a"], [1, 2, 3])


PLAYS = """
import sys
from pathlib import Path
from harness.process.identity import this_process
from harness.store.store import LiveEntry, Store
from harness.store.transcript import Entry
with Store(Path(sys.argv[1])) as store:
    store.claim("one", 1, this_process())
    for seq in range(10_000):
        entry = Entry(role="assistant", text=str(seq), at_s=seq / 1000)
        store.add_live_entries("one", this_process(), [LiveEntry(1, seq, entry)])
        print(seq, flush=True)
"""


@pytest.mark.parametrize("after", [1, 200])
def test_what_was_said_survives_a_kill(tmp_path: Path, after: int, harness_cli: Cli) -> None:
    """After SIGKILL, each message whose storing was confirmed is there, and ``show``, ``clean`` and a claim work."""
    playing(tmp_path).__exit__(None, None, None)
    command = [sys.executable, "-c", PLAYS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) + 1 == after:
                process.send_signal(signal.SIGKILL)
                break
        confirmed = [int(line), *(int(rest) for rest in process.stdout)]
    done = harness_cli("show", "one", "1", "--json", "--runs-dir", tmp_path)
    unfinished = json.loads(done.stdout)["unfinished"]
    kept = [int(entry["text"]) for entry in unfinished["transcript"]]
    assert kept == list(range(len(kept)))
    assert len(kept) > confirmed[-1] >= after - 1
    assert (unfinished["run_id"], unfinished["number"], unfinished["running"]) == ("one", 1, False)
    with playing(tmp_path) as store:
        assert store.clear_claims() == 1
        assert store.missing("one", 3) == [1, 2, 3]
        playing(tmp_path, 1).__exit__(None, None, None)
        store.add_trial(trial_record(1, run_id="one"))
        assert store.unfinished("one") == []
    assert json.loads(harness_cli("show", "one", "1", "--json", "--runs-dir", tmp_path).stdout)["number"] == 1


def test_a_listener_stores_what_is_said(tmp_path: Path) -> None:
    """The writer stores the messages of each trial in their order, and begins afresh with another attempt."""
    run, events = EventStream(), [TrialEvents(number) for number in (1, 2)]
    for each in events:
        each.run = run
    with playing(tmp_path, 1, 2) as store, Store(tmp_path) as writing:
        with run.heard_by(LiveTranscriptWriter(writing, "one").hear):
            for each in events:
                each.publish(Began())
                transcript = Transcript(each)
                transcript.append(Entry(role="user", text="Answer."))
                transcript.append(Entry(role="assistant", text="No."))
                each.publish(Ended())
        assert [texts(store, number) for number in (1, 2)] == [["Answer.", "No."]] * 2
        with run.heard_by(LiveTranscriptWriter(writing, "one").hear):
            events[0].publish(Retried(trial_record(1)))
            again = Transcript(events[0])
            again.append(Entry(role="user", text="Again."))
            again.append(Entry(role="tool", text="Done."))
            again.append(Entry(role="assistant", text="Not stored yet."))
        assert [texts(store, number) for number in (1, 2)] == [["Again.", "Done."], ["Answer.", "No."]]


def test_a_message_that_cannot_be_stored_is_passed_over(tmp_path: Path) -> None:
    """If one answer can't be stored, a StoreError says so, and the next answer is stored at its own place."""
    with playing(tmp_path, 1) as store, Store(tmp_path) as blocking, Store(tmp_path) as writing:
        writer = LiveTranscriptWriter(writing, "one")
        writing._db.execute("PRAGMA busy_timeout=1")
        writer.hear([Event(1, 0.0, Said(Entry(role="tool", text="a")))])
        with blocking._transaction(), pytest.raises(StoreError, match="can't be written"):
            writer.hear([Event(1, 0.0, Said(Entry(role="tool", text="b")))])
        writer.hear([Event(1, 0.0, Said(Entry(role="tool", text="c")))])
        assert texts(store) == ["a", "c"]


def test_an_unfinished_trial_says_so(tmp_path: Path) -> None:
    """The first line of an unfinished trial says so and that nothing was judged; what follows is escaped."""
    with playing(tmp_path, 1) as store:
        entry = Entry(role="assistant", text="\x1b[2Jhello", calls=(shell("ls"),))
        store.add_live_entries("one", ME, [LiveEntry(1, 0, entry)])
        found = store.unfinished_trial("one", 1)
    assert found is not None
    out = printed(print_unfinished_trial, found)
    first = out.splitlines()[0]
    assert first == "Trial 1 of run one isn't finished: it is being played. Nothing in it was judged."
    assert "\\x1b[2Jhello" in out
    assert "$ ls" in out
    assert "has ended" in printed(print_unfinished_trial, found.model_copy(update={"running": False}))


def test_a_message_without_a_time_is_stored_as_before() -> None:
    """The time of a message is left out of its JSON where it is unknown, and comes back where it is known."""
    assert "at_s" not in json.loads(Entry(role="user").model_dump_json())
    dated = Entry(role="user", at_s=0.0)
    assert json.loads(dated.model_dump_json())["at_s"] == 0.0
    assert Entry.model_validate_json(dated.model_dump_json()) == dated


# ---- from real runs ----


SLOW = """\
id: slow
steps:
- run: echo the first
- run: echo the second
- run: sleep 60
"""


@pytest.mark.docker
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_said_survives_the_end_of_a_run(
    harness_started: Callable[..., subprocess.Popen[str]], harness_cli: Cli, tmp_path: Path, how: signal.Signals
) -> None:
    """A run that is killed, or stopped by Ctrl-C, leaves what was said up to the last finished call."""
    book = tmp_path / "book.yaml"
    book.write_text(SLOW)
    where = ("--runs-dir", str(tmp_path / "runs"))
    running = harness_started("trial", "--model", f"script:{book}", "--run-id", "early", *where)
    deadline = time.monotonic() + 60
    said: list[str] = []
    while "the second" not in said[-1:] and time.monotonic() < deadline:
        time.sleep(0.1)
        with suppress(UsageError), Store(tmp_path / "runs", create=False) as store:
            found = store.unfinished_trial("early", 1)
            said = [entry.text for entry in found.transcript if entry.role == "tool"] if found else []
    running.send_signal(how)
    running.wait(60)
    with Store(tmp_path / "runs", create=False) as store:
        left = store.unfinished_trial("early", 1)
    assert left is not None
    assert [entry.text for entry in left.transcript if entry.role == "tool"] == ["the first", "the second"]
    assert not left.running
    shown = harness_cli("show", "early", "1", *where)
    assert "isn't finished" in shown.stdout.splitlines()[0]
    assert harness_cli("clean", *where).returncode == 0
