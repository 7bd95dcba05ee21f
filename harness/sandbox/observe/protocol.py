"""Defines the replies that the watch daemon (daemon.py) sends to its client (client.py).

Each reply is sent as a JSON object on one line.
"""

from __future__ import annotations

from harness.judging.evidence import FileAccess, Frozen
from harness.sandbox.protocol import FileEvent


class NewEvents(Frozen):
    """The file events of one sandbox since the client's last request, in the order in which they happened.

    ``lost`` is true if some events are missing, for example because there were too many. ``one_process`` are the
    watched paths, without those at which a process removed a file and didn't create a new one there itself.
    ``one_process`` is None if the host can't tell which process caused an event.
    """

    events: tuple[FileEvent, ...] = ()
    lost: bool = False
    one_process: frozenset[str] | None = None


class DaemonReply(Frozen):
    """The watch daemon's reply to one request.

    ``failed`` is the message of an error on the host, or None if there was no error. ``new_events`` are the requested
    file events, or None if the request wasn't for events or the sandbox isn't watched. ``accesses`` are the requested
    file accesses, or None if the request wasn't for accesses or some accesses weren't recorded.
    """

    failed: str | None = None
    new_events: NewEvents | None = None
    accesses: tuple[FileAccess, ...] | None = None
