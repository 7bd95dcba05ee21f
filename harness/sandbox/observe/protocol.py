"""Defines the replies that the watch daemon (daemon.py) sends to its client (client.py).

Each reply is sent as a JSON object on one line.
"""

from __future__ import annotations

from harness.judging.evidence import FileAccess, Frozen
from harness.sandbox.protocol import FileEvent


class NewEvents(Frozen):
    """The file events of one sandbox since the client's last request, in the order in which they happened.

    ``lost`` is true if some events are missing, for example because there were too many. ``one_process`` are the
    watched paths except those at which some process removed a file without creating a new one. It is None if the host
    can't tell which process caused an event.
    """

    events: tuple[FileEvent, ...] = ()
    lost: bool = False
    one_process: frozenset[str] | None = None


class DaemonReply(Frozen):
    """The watch daemon's reply to one request.

    ``failed`` is the message of an error on the host, or None if there was no error. ``new_events`` is None if the
    request wasn't for events or the sandbox isn't watched. ``accesses`` is None if the request wasn't for accesses or
    some accesses weren't recorded.
    """

    failed: str | None = None
    new_events: NewEvents | None = None
    accesses: tuple[FileAccess, ...] | None = None
