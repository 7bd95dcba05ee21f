"""Tunes Python's garbage collector: processes that play or watch trials collect rarely, to save CPU time."""

from __future__ import annotations

import gc

GC_THRESHOLD = 10_000  # new objects between two collections


def collect_garbage_rarely() -> None:
    """Make Python collect garbage rarely, and never scan the objects that exist now.

    Trials create few reference cycles, so frequent collections would find little to free.
    """
    gc.freeze()  # the loaded libraries stay until the process ends
    gc.set_threshold(GC_THRESHOLD)
