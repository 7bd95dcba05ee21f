"""Defines experiments. An experiment is a grid of cells, and each cell is one run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from harness.judging.evidence import Frozen
from harness.store.records import Plan, Reference
from harness.tasks.setting import Value

# Settings that are hashed in every run id, given or not; others only if given. Stored runs have such ids.
_IN_EVERY_ID = ("seed", "questions", "notice_after")
_SLUG = re.compile(r"[^a-z0-9]+")


class ExperimentCell(Frozen):
    """One cell of an experiment. Each cell is one run.

    ``n`` is the number of trials, or None if each playbook or recording is played once. ``template`` is the model's
    name as written in the experiment's file. ``model`` is the same name with the ``--set`` values filled in.
    ``published`` identifies the published figure to compare the cell with, or is None if there is no such figure.
    ``place`` is the file and line that define the cell. ``settings`` contains those settings of the experiment that
    apply to the cell.
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
    settings: Mapping[str, Value] = Field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, ...]:
        """The settings that distinguish this cell from other cells of the experiment."""
        return (self.template, self.task, self.condition or "", self.mechanism, self.image)

    @property
    def name(self) -> str:
        """The settings of the cell, joined into a readable name."""
        return " / ".join(filter(None, self.identity))


class Experiment(Frozen):
    """An experiment as described by its file.

    ``sha256`` is the hash of the experiment's file. ``conditions`` is the path of a file with the user's own
    conditions, or None if there is no such file. ``margin`` is the equivalence margin, or None for the default margin.
    Two rates count as equivalent if they differ by less than the margin. ``max_cost`` is the maximum cost in US dollars
    of each cell with a live model, or None for no limit.
    """

    name: str
    about: str
    sha256: str
    cells: tuple[ExperimentCell, ...]
    conditions: Path | None = None
    margin: float | None = None
    message_limit: int = 60
    ask_after: bool = False
    max_cost: float | None = None

    def run_id(self, cell: ExperimentCell) -> str:
        """Return the id of a cell's run. Equal settings give equal ids."""
        first = [cell.settings.get(name) for name in _IN_EVERY_ID]
        others = sorted((name, value) for name, value in cell.settings.items() if name not in _IN_EVERY_ID)
        options = (*first, self.message_limit, self.ask_after, *others)
        digest = hashlib.sha256(repr((cell.identity, options)).encode()).hexdigest()[:8]
        return "-".join((self.name, *filter(None, map(_slug, (cell.template, cell.condition or ""))), digest))

    def plan(self, cell: ExperimentCell) -> Plan:
        """Return the plan of a cell, which is stored with the cell's run.

        The plan contains the experiment's name, the hash of its file, the cell's name, the equivalence margin and a
        reference to the published figure.
        """
        return Plan(
            experiment=self.name,
            sha256=self.sha256,
            cell=cell.name,
            margin=self.margin,
            published=cell.published,
        )


def _slug(text: str) -> str:
    return _SLUG.sub("-", text.lower()).strip("-")[-40:]
