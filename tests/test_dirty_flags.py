"""The page by which the eye tells the lab that there is nothing to ask for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from harness.sandbox.observe.dirty_flags import DirtyFlags, DirtyFlagsReader


@dataclass
class Both:
    """The page as the eye has it and as the lab has it, and the queue of events that both know."""

    eye: DirtyFlags
    lab: DirtyFlagsReader
    queue: INotify
    folder: Path


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """An eye that watches a folder, and a lab that it has handed the page to."""
    ours, theirs = socket.socketpair()
    with ours, theirs, INotify(nonblocking=True) as queue:
        queue.add_watch(tmp_path, flags.CREATE)
        slate = DirtyFlags()
        slate.hand_over(theirs, queue.fileno())
        reader = DirtyFlagsReader(ours)
        yield Both(slate, reader, queue, tmp_path)
        reader.close()


def test_it_is_quiet_until_something_happens(both: Both) -> None:
    """An event that waits in the queue is known without anybody having looked at it."""
    with both.lab.slot() as slot:
        assert both.lab.quiet(slot)
        (both.folder / "new").touch()
        assert not both.lab.quiet(slot)


def test_an_event_that_is_being_looked_at_is_no_quiet(both: Both) -> None:
    """From the moment an event is off the queue until all is marked, nobody is told that nothing happened."""
    with both.lab.slot() as mine, both.lab.slot() as anothers:
        (both.folder / "new").touch()
        both.eye.busy()
        both.queue.read(timeout=0)
        assert not both.lab.quiet(mine)
        both.eye.mark(mine)
        both.eye.idle()
        assert not both.lab.quiet(mine)
        assert both.lab.quiet(anothers)
        both.eye.clear(mine)
        assert both.lab.quiet(mine)


def test_an_eye_that_fails_is_never_quiet(both: Both) -> None:
    """Where the eye ended in the middle of its work, everybody asks, and hears of it."""
    both.eye.busy()
    with both.lab.slot() as slot:
        assert not both.lab.quiet(slot)


def test_a_place_has_one_sandbox_at_a_time(both: Both) -> None:
    """However many come and go, no two that are watched at once share a place, and none has the eye's own."""
    held = [both.lab.slot() for _ in range(300)]
    places = [each.__enter__() for each in held]
    assert len({0, *places}) == 301
    for each in held:
        each.__exit__(None, None, None)
