"""The dirty flags by which the watch daemon tells its client that there is nothing to ask for."""

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
    """The flags as the daemon and its client have them, and the event queue that both share."""

    daemon: DirtyFlags
    client: DirtyFlagsReader
    queue: INotify
    folder: Path


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    """A daemon that watches a folder, and a client that has received its flags."""
    ours, theirs = socket.socketpair()
    with ours, theirs, INotify(nonblocking=True) as queue:
        queue.add_watch(tmp_path, flags.CREATE)
        written = DirtyFlags()
        written.hand_over(theirs, queue.fileno())
        reader = DirtyFlagsReader(ours)
        yield Both(written, reader, queue, tmp_path)
        reader.close()


def test_it_is_quiet_until_something_happens(both: Both) -> None:
    """An event still in the kernel's queue, which the daemon hasn't taken yet, makes a sandbox not quiet."""
    with both.client.allocated() as slot:
        assert both.client.quiet(slot)
        (both.folder / "new").touch()
        assert not both.client.quiet(slot)


def test_an_event_that_is_being_processed_is_not_quiet(both: Both) -> None:
    """From when an event leaves the queue until its flag is set, no sandbox is quiet; afterwards the others are."""
    with both.client.allocated() as mine, both.client.allocated() as anothers:
        (both.folder / "new").touch()
        both.daemon.busy()
        both.queue.read(timeout=0)
        assert not both.client.quiet(mine)
        both.daemon.mark(mine)
        both.daemon.idle()
        assert not both.client.quiet(mine)
        assert both.client.quiet(anothers)
        both.daemon.clear(mine)
        assert both.client.quiet(mine)


def test_a_daemon_that_died_while_busy_is_never_quiet(both: Both) -> None:
    """A daemon that died while it processed events leaves no sandbox quiet, so each client asks and learns of it."""
    both.daemon.busy()
    with both.client.allocated() as slot:
        assert not both.client.quiet(slot)


def test_a_flag_has_one_sandbox_at_a_time(both: Both) -> None:
    """No two of 300 sandboxes share a flag, and none gets the flag that says whether the daemon is busy."""
    held = [both.client.allocated() for _ in range(300)]
    slots = [each.__enter__() for each in held]
    assert len({0, *slots}) == 301
    for each in held:
        each.__exit__(None, None, None)
