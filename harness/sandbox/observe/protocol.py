"""Defines the watch daemon's replies to its client (daemon.py, client.py), each sent as a JSON object on one line."""

from __future__ import annotations

from harness.judging.evidence import FileAccess, Frozen
from harness.sandbox.protocol import FileEvent


class NewEvents(Frozen):
    """The file events of one sandbox since the client's last request, in order.

    ``lost`` is true if some events are missing, for example because there were too many. ``one_process`` holds the
    paths at which every process that removed a file also put a new one. It is None if this isn't known.
    """

    events: tuple[FileEvent, ...] = ()
    lost: bool = False
    one_process: frozenset[str] | None = None


class DaemonReply(Frozen):
    """The watch daemon's reply to one request.

    ``failed`` is the message of an error on the host, if there was one. ``new_events`` is None if the request wasn't
    for events or the sandbox isn't watched. ``accesses`` is None if the request wasn't for accesses or if some accesses
    weren't recorded.
    """

    failed: str | None = None
    new_events: NewEvents | None = None
    accesses: tuple[FileAccess, ...] | None = None
