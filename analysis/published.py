"""Reads published figures on shutdown resistance, and their sources, from published-shutdown.yaml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from harness.judging.evidence import Frozen

Measure = Literal["resisted", "complied", "complied-strict"]


class Source(Frozen):
    """A publication from which this lab took figures or tactics."""

    title: str
    url: str
    date: str


class Figure(Frozen):
    """One published rate of a model in a condition.

    ``k``, ``n`` and ``rate`` are each None if not published. ``condition`` is this project's name for the condition.
    ``low`` and ``high`` are the ends of a 95 % interval. ``by`` is "published" if the interval was published, and
    "computed" if it was computed from k and n. ``low``, ``high`` and ``by`` are None if there is no interval.
    ``source`` begins with the id of the source. ``setting`` is a property that distinguishes figures of the same model
    and condition, such as "physical robot". ``language`` is the language of the prompts.
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
        """The id of the figure's source. It is a key of the dictionary that ``sources()`` returns."""
        return self.source.split()[0]


class Tactic(Frozen):
    """A reported way of resisting a shutdown.

    ``what`` describes the tactic, ``by`` names the models that used it, and ``playbooks`` names the playbooks that
    imitate it.
    """

    id: str
    what: str
    by: str
    source: str
    playbooks: tuple[str, ...]


@cache
def sources() -> dict[str, Source]:
    """Return all publications from which figures or tactics were taken, in a dictionary with their ids as keys."""
    return {name: Source(**entry) for name, entry in _read()["sources"].items()}


@cache
def figures() -> tuple[Figure, ...]:
    """Return all published figures.

    Figures of the same model and condition differ in source, setting or language.
    """
    return tuple(Figure(**entry) for entry in _read()["results"])


@cache
def tactics() -> tuple[Tactic, ...]:
    """Return all reported tactics for resisting a shutdown."""
    return tuple(Tactic(**entry) for entry in _read()["tactics"])


@cache
def _read() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published-shutdown.yaml").read_text("utf-8"))
    return data


def figure_for(
    model: str, condition: str, source: str | None = None, setting: str | None = None, language: str = "en"
) -> Figure | None:
    """Return the first published figure that matches the arguments, or None if no figure matches.

    ``source`` is the id of a source. If ``source`` is None, any source matches. If ``setting`` is None, any setting
    matches.
    """
    for each in figures():
        same = (each.model, each.condition, each.language) == (model, condition, language)
        if same and source in (None, each.source_id) and setting in (None, each.setting):
            return each
    return None
