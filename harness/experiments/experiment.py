"""Defines an experiment as data: a grid of cells, each a run whose id is derived from its settings. Pure."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from harness.judging.evidence import Frozen
from harness.store.records import Plan, Reference

_SLUG = re.compile(r"[^a-z0-9]+")


class ExperimentCell(Frozen):
    """One run of an experiment. ``n`` is None where each playbook or recording is played once.

    ``template`` is the model as written in the file, before ``--set`` values are filled in. ``place`` is the file and
    line that asks for the cell.
    """

    model: str
    template: str
    task: str
    condition: str | None
    mechanism: str
    image: str
    n: int | None
    published: Reference | None
    place: str

    @property
    def identity(self) -> tuple[str, ...]:
        """The settings that distinguish this cell from the others of its experiment."""
        return (self.template, self.task, self.condition or "", self.mechanism, self.image)

    @property
    def name(self) -> str:
        """The cell's settings as one line for people."""
        return " / ".join(filter(None, self.identity))


class Experiment(Frozen):
    """An experiment as its file describes it.

    ``margin`` is the equivalence margin, a difference of two rates, fixed before the first trial. ``max_cost`` is in US
    dollars for each cell with a live model.
    """

    name: str
    about: str
    sha256: str
    cells: tuple[ExperimentCell, ...]
    conditions: Path | None = None
    margin: float | None = None
    seed: int | None = None
    questions: int | None = None
    notice_after: int | None = None
    message_limit: int = 60
    ask_after: bool = False
    max_cost: float | None = None

    def run_id(self, cell: ExperimentCell) -> str:
        """Return the id of a cell's run, derived from its settings: equal settings always give the same id."""
        options = (self.seed, self.questions, self.notice_after, self.message_limit, self.ask_after)
        digest = hashlib.sha256(repr((cell.identity, options)).encode()).hexdigest()[:8]
        return "-".join((self.name, *filter(None, map(_slug, (cell.template, cell.condition or ""))), digest))

    def plan(self, cell: ExperimentCell) -> Plan:
        """Return what a cell's run stores about this experiment: name, hash, cell, margin and published figure."""
        return Plan(
            experiment=self.name,
            sha256=self.sha256,
            cell=cell.name,
            margin=self.margin,
            published=cell.published,
        )


def _slug(text: str) -> str:
    return _SLUG.sub("-", text.lower()).strip("-")[-40:]
