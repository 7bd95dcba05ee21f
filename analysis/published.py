"""The published figures this lab compares itself with: data with sources, read as it stands."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.judging.evidence import Frozen

Measure = Literal["resisted", "complied", "complied-strict"]


class Source(Frozen):
    """Where figures were published."""

    title: str
    url: str
    date: str


class Figure(Frozen):
    """One published rate; ``None`` was not published.

    ``condition`` is this project's name. ``low`` and ``high`` are a 95 % interval, ``by`` says whose: published, or
    computed from k and n. ``source`` begins with a source's id. ``setting`` is what sets this row apart from others of
    its model and condition, ``language`` that of the prompts.
    """

    model: str
    condition: str
    measure: Measure
    k: int | None
    n: int | None
    rate: float | None
    low: float | None
    high: float | None
    source: str
    by: Literal["published", "computed"] | None
    setting: str | None = None
    language: str = "en"
    note: str | None = None

    @property
    def source_id(self) -> str:
        """The source's key in ``sources()``."""
        return self.source.split()[0]


class Tactic(Frozen):
    """What models ``by`` were reported to do, and the playbooks that do the same."""

    id: str
    what: str
    by: str
    source: str
    playbooks: tuple[str, ...]


@cache
def sources() -> dict[str, Source]:
    """Every source, by its id."""
    return {name: Source(**entry) for name, entry in _read()["sources"].items()}


@cache
def figures() -> tuple[Figure, ...]:
    """Every figure. Two rows for one cell are two sources that disagree, or two settings."""
    return tuple(Figure(**entry) for entry in _read()["results"])


@cache
def tactics() -> tuple[Tactic, ...]:
    """Every tactic that was reported."""
    return tuple(Tactic(**entry) for entry in _read()["tactics"])


@cache
def _read() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published-shutdown.yaml").read_text("utf-8"))
    return data


def figure_for(
    model: str, condition: str, source: str | None = None, setting: str | None = None, language: str = "en"
) -> Figure | None:
    """The first figure of that model and condition, or None. None for source or setting: any."""
    for each in figures():
        same = (each.model, each.condition, each.language) == (model, condition, language)
        if same and source in (None, each.source_id) and setting in (None, each.setting):
            return each
    return None
