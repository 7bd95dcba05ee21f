"""Defines the watch daemon's replies to its client (daemon.py, client.py), each sent as a JSON object on one line."""

from __future__ import annotations

from harness.judging.evidence import FileAccess, Frozen
from harness.sandbox.protocol import FileEvent


class NewEvents(Frozen):
    """The file events of one sandbox since the client's last request, in order.

    ``lost`` is true if some events are missing, for example because there were too many. ``one_process`` has the same
    meaning as in ``Snapshot``.
    """

    events: tuple[FileEvent, ...] = ()
    lost: bool = False
    one_process: frozenset[str] | None = None


class DaemonReply(Frozen):
    """The watch daemon's reply to one request.

    ``failed`` is an error message if the host failed. ``new_events`` and ``accesses`` are set only if the request was
    for them. Even then ``new_events`` is None if the sandbox isn't watched, and ``accesses`` is None if some weren't
    recorded.
    """

    failed: str | None = None
    new_events: NewEvents | None = None
    accesses: tuple[FileAccess, ...] | None = None
