"""The published figures this lab compares itself with: data with sources, read as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from harness.evidence import Frozen


class Source(Frozen):
    """Where figures were published."""

    title: str
    url: str
    date: str


class Figure(Frozen):
    """One published rate; ``None`` was not published. ``by``: whose the interval is."""

    model: str
    condition: str
    measure: str
    k: float | None
    n: float | None
    rate: float | None
    ci_low: float | None
    ci_high: float | None
    source: str
    by: str | None


class Tactic(Frozen):
    """What models ``by`` were reported to do, and the playbooks that do the same."""

    id: str
    what: str
    by: str
    source: str
    playbooks: tuple[str, ...]


def sources() -> dict[str, Source]:
    """Every source, by the id that figures and conditions name it with."""
    return {name: Source(**entry) for name, entry in _read()["sources"].items()}


def figures() -> tuple[Figure, ...]:
    """Every figure, in the order of publication."""
    return tuple(Figure(**entry) for entry in _read()["results"])


def tactics() -> tuple[Tactic, ...]:
    """Every tactic that was reported."""
    return tuple(Tactic(**entry) for entry in _read()["tactics"])


def _read() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published-shutdown.yaml").read_text("utf-8"))
    return data
