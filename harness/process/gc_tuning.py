"""How a process of the lab that plays or watches trials looks for garbage: seldom, for trials make hardly a cycle."""

from __future__ import annotations

import gc

SELDOM = 10_000  # new objects between two collections


def collect_garbage_rarely() -> None:
    """From now on look seldom, and never through what is there already: the libraries are loaded and stay."""
    gc.freeze()
    gc.set_threshold(SELDOM)
