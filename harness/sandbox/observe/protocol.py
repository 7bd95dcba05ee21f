"""What the eye answers the lab, on one line of JSON: written by the one (eye.py) and read by the other (events.py)."""

from __future__ import annotations

from harness.judging.evidence import Frozen, Opening
from harness.sandbox.protocol import Glimpse


class Happened(Frozen):
    """Glimpses in their order, whether there were more than the eye could keep, and as in ``Looked.alone``."""

    glimpses: tuple[Glimpse, ...] = ()
    lost: bool = False
    alone: frozenset[str] | None = None


class EyeAnswer(Frozen):
    """One answer: what the host wouldn't let the eye do, or what was asked for. None is not asked, or not known."""

    failed: str | None = None
    happened: Happened | None = None
    openings: tuple[Opening, ...] | None = None
