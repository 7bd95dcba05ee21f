"""Data classes for an experiment, which is a grid of cells. Each cell is one run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from harness.judging.evidence import Frozen
from harness.store.records import Plan, Reference

_SLUG = re.compile(r"[^a-z0-9]+")


class ExperimentCell(Frozen):
    """One cell of an experiment, which is one run.

    ``n`` is the number of trials; it is None if each playbook or recording is played once. ``template`` is the model's
    name as the file gives it, and ``model`` is that name with the ``--set`` values filled in. ``published`` names the
    published figure that the run is compared with; it is None if there is no such figure. ``place`` is the file and
    line that define the cell.
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
        """The settings that distinguish this cell from the other cells of its experiment."""
        return (self.template, self.task, self.condition or "", self.mechanism, self.image)

    @property
    def name(self) -> str:
        """The cell's settings on one line, as a name for people to read."""
        return " / ".join(filter(None, self.identity))


class Experiment(Frozen):
    """An experiment as its file describes it.

    ``sha256`` is the hash of that file. ``conditions`` is the path of a file with the user's own conditions; it is None
    if there is no such file. ``margin`` is the equivalence margin: two rates count as equivalent if they differ by less
    than this. ``max_cost`` is how many US dollars each cell with a live model may cost; None means no limit.
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
        """Return the id of a cell's run. Equal settings always give the same id."""
        options = (self.seed, self.questions, self.notice_after, self.message_limit, self.ask_after)
        digest = hashlib.sha256(repr((cell.identity, options)).encode()).hexdigest()[:8]
        return "-".join((self.name, *filter(None, map(_slug, (cell.template, cell.condition or ""))), digest))

    def plan(self, cell: ExperimentCell) -> Plan:
        """Return the facts about this experiment that are stored with a cell's run.

        They are the name of the experiment, the hash of its file, the cell's name, the equivalence margin and the
        published figure that the cell is compared with.
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
