"""Runs the missing trials of an experiment, one cell after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import uvloop

from analysis.published import Figure, figure_for
from harness.agents.providers.options import ModelOptions
from harness.agents.registry import is_live
from harness.errors import LabError, UsageError
from harness.experiments.experiment import Experiment, ExperimentCell
from harness.judging.verdict import Outcome
from harness.runs.request import RunRequest, check_request, run_request
from harness.store.store import Store, StoredRun, is_store
from harness.store.summary import Rate

if TYPE_CHECKING:
    from harness.runs.job import RunResult

State = Literal["missing", "begun", "complete"]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CellState:
    """The progress of one cell.

    ``n`` is the planned number of trials, or None until the cell's playbooks or recordings have been counted.
    ``counts`` contains the number of stored trials for each outcome.
    """

    cell: ExperimentCell
    run_id: str
    n: int | None
    counts: dict[Outcome, int]

    @property
    def finished(self) -> int:
        """The number of stored trials, including trials that ended in an error."""
        return sum(self.counts.values())

    @property
    def state(self) -> State:
        """The state of the cell: "missing", "begun" or "complete".

        A cell is "missing" if no trial is stored, "complete" if all trials are stored, and "begun" otherwise.
        """
        if self.n is not None and self.finished >= self.n:
            return "complete"
        return "begun" if self.finished else "missing"

    @property
    def rate(self) -> Rate:
        """The rate of resistance among the trials that ended without an error."""
        return Rate.of(self.counts.get(Outcome.RESISTED, 0), self.finished - self.counts.get(Outcome.ERROR, 0))

    @property
    def figure(self) -> Figure | None:
        """The published figure that this cell is compared with, or None if there is no such figure."""
        asked = self.cell.published
        return figure_for(**asked.model_dump()) if asked else None

    def as_json(self) -> dict[str, Any]:
        """Return the cell's settings, progress, resistance rate and published figure as a JSON object."""
        figure = self.figure
        return {
            "run_id": self.run_id,
            **self.cell.model_dump(include={"model", "task", "condition", "mechanism", "image"}),
            "live": is_live(self.cell.model),
            "n": self.n,
            "finished": self.finished,
            "state": self.state,
            **{outcome.value: self.counts.get(outcome, 0) for outcome in Outcome},
            "rate": self.rate.rate,
            "ci_low": self.rate.low,
            "ci_high": self.rate.high,
            "published": figure.model_dump() if figure else None,
        }


def states(experiment: Experiment, cells: Iterable[ExperimentCell], runs_dir: Path) -> list[CellState]:
    """Return the progress of each cell.

    Raises UsageError if the experiment's file contradicts the stored run of a cell.
    """
    if not is_store(runs_dir):
        return [CellState(cell, experiment.run_id(cell), cell.n, {}) for cell in cells]
    with Store(runs_dir, create=False) as store:
        stored = {run.spec.run_id: run for run in store.runs()}
        return list(_states(experiment, cells, store, stored))


def _states(
    experiment: Experiment, cells: Iterable[ExperimentCell], store: Store, stored: dict[str, StoredRun]
) -> Iterator[CellState]:
    for cell in cells:
        run_id = experiment.run_id(cell)
        run = stored.get(run_id)
        if run:
            _must_be_as_planned(experiment, cell, run)
        yield CellState(cell, run_id, run.spec.n if run else cell.n, store.counts(run_id) if run else {})


def _must_be_as_planned(experiment: Experiment, cell: ExperimentCell, run: StoredRun) -> None:
    """Raise UsageError if the experiment's file contradicts the stored run of a cell.

    The number of trials, the equivalence margin and the published figure must not change after the run was stored.
    """
    stored = run.spec.plan
    for what, then, now in (
        ("n", run.spec.n, cell.n or run.spec.n),
        ("margin", stored and stored.margin, experiment.margin),
        ("published figure", stored and stored.published, cell.published),
    ):
        if then != now:
            raise UsageError(
                f"{cell.place}: run '{run.spec.run_id}' was begun with {what} {then}, and the file now says {now}: "
                "give the changed experiment another name."
            )


def request_for(experiment: Experiment, cell: ExperimentCell, runs_dir: Path, concurrency: int) -> RunRequest:
    """Return the run request for one cell of an experiment."""
    asking = ModelOptions(max_cost=experiment.max_cost) if is_live(cell.model) else None
    return RunRequest(
        model=cell.model,
        n=cell.n,
        task=cell.task,
        condition=cell.condition,
        mechanism=cell.mechanism,
        image=cell.image,
        concurrency=concurrency,
        settings=cell.settings,
        message_limit=experiment.message_limit,
        run_id=experiment.run_id(cell),
        runs_dir=runs_dir,
        asking=asking,
        conditions=experiment.conditions,
        ask_after=experiment.ask_after,
        plan=experiment.plan(cell),
    )


def run_missing(
    experiment: Experiment, todo: list[CellState], runs_dir: Path, concurrency: int, note: Note
) -> Iterator[RunResult]:
    """Run the missing trials of the cells in ``todo``, one cell after another, and yield the result of each cell.

    All cells are checked before the first cell is run. ``note`` is called with a line of text before each cell is run.
    Raises UsageError with the file and line of an invalid cell.
    """
    requests = [(each, request_for(experiment, each.cell, runs_dir, concurrency)) for each in todo]
    for each, request in requests:
        try:
            check_request(request)
        except UsageError as error:
            raise UsageError(f"{each.cell.place}: {error}") from error
    for number, (each, request) in enumerate(requests, 1):
        note(f"cell {number} of {len(requests)}: {each.cell.name} as run {each.run_id}")
        yield run_cell(each, request)


def run_cell(state: CellState, request: RunRequest) -> RunResult:
    """Run the missing trials of a cell, and return the summary of the cell's run and how the run ended.

    If the run raises LabError, the cell's name is added to the message.
    """
    try:
        return uvloop.run(run_request(request))
    except LabError as error:
        raise type(error)(f"Cell {state.cell.name}: {error}") from error
