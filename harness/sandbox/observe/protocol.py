"""Defines the answers of the watch daemon (daemon.py) to its client (client.py): one JSON object a line."""

from __future__ import annotations

from harness.judging.evidence import FileAccess, Frozen
from harness.sandbox.protocol import FileEvent


class NewEvents(Frozen):
    """The file events of one sandbox since the last request, in order.

    ``lost``: more events came than the daemon could keep. ``one_process``: as in ``Snapshot.one_process``.
    """

    events: tuple[FileEvent, ...] = ()
    lost: bool = False
    one_process: frozenset[str] | None = None


class DaemonReply(Frozen):
    """One answer of the watch daemon: an error of the host, or the requested events or accesses; else None."""

    failed: str | None = None
    new_events: NewEvents | None = None
    accesses: tuple[FileAccess, ...] | None = None
