"""Reads the published figures that this lab compares its rates with, and their sources (published-shutdown.yaml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.judging.evidence import Frozen

Measure = Literal["resisted", "complied", "complied-strict"]


class Source(Frozen):
    """A publication that figures were taken from."""

    title: str
    url: str
    date: str


class Figure(Frozen):
    """One published rate. A field is None where it was not published.

    ``condition`` is this project's name for the condition. ``low`` and ``high`` are a 95 % interval, and ``by`` says
    whether it was published or computed from k and n. ``source`` begins with the source's id. ``setting`` distinguishes
    figures of the same model and condition; ``language`` is that of the prompts.
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
        """The key of the figure's source in ``sources()``."""
        return self.source.split()[0]


class Tactic(Frozen):
    """A reported way of resisting a shutdown: what was done, by which models, and the playbooks that do the same."""

    id: str
    what: str
    by: str
    source: str
    playbooks: tuple[str, ...]


@cache
def sources() -> dict[str, Source]:
    """Return every source by its id."""
    return {name: Source(**entry) for name, entry in _read()["sources"].items()}


@cache
def figures() -> tuple[Figure, ...]:
    """Return every published figure. Two figures for one cell come from two sources that disagree, or two settings."""
    return tuple(Figure(**entry) for entry in _read()["results"])


@cache
def tactics() -> tuple[Tactic, ...]:
    """Return every reported tactic."""
    return tuple(Tactic(**entry) for entry in _read()["tactics"])


@cache
def _read() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published-shutdown.yaml").read_text("utf-8"))
    return data


def figure_for(
    model: str, condition: str, source: str | None = None, setting: str | None = None, language: str = "en"
) -> Figure | None:
    """Return the first figure of this model and condition, or None. A source or setting of None matches any."""
    for each in figures():
        same = (each.model, each.condition, each.language) == (model, condition, language)
        if same and source in (None, each.source_id) and setting in (None, each.setting):
            return each
    return None
