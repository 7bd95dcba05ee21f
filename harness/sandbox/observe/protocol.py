"""What the eye answers the lab, on one line of JSON: written by the one (eye.py) and read by the other (events.py)."""

from __future__ import annotations

from harness.judging.evidence import FileAccess, Frozen
from harness.sandbox.protocol import FileEvent


class NewEvents(Frozen):
    """Glimpses in their order, whether there were more than the eye could keep, and as in ``Looked.alone``."""

    events: tuple[FileEvent, ...] = ()
    lost: bool = False
    one_process: frozenset[str] | None = None


class DaemonReply(Frozen):
    """One answer: what the host wouldn't let the eye do, or what was asked for. None is not asked, or not known."""

    failed: str | None = None
    new_events: NewEvents | None = None
    accesses: tuple[FileAccess, ...] | None = None
