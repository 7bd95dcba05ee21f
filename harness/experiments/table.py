"""Prints an experiment as a table with one row for each cell."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from harness.agents.registry import is_live
from harness.experiments.experiment import Experiment
from harness.experiments.job import CellState
from harness.judging.verdict import Outcome
from harness.terminal.text import safe, safe_line


def print_cells(console: Console, experiment: Experiment, cells: Sequence[CellState]) -> None:
    """Print a table of the cells with their progress, resistance rates and published rates."""
    console.print(safe(f"Experiment {experiment.name}"), style="bold")
    if experiment.about:
        console.print(safe(experiment.about), soft_wrap=True)
    table = Table(pad_edge=False)
    axes = [
        key for key in ("model", "task", "condition", "mechanism", "image") if key == "model" or _differ(cells, key)
    ]
    for name in (*axes, "trials", "resisted", "95 %", "errors", "published"):
        table.add_column(name, overflow="fold")
    for each in cells:
        cell = {**each.cell.model_dump(), "model": each.cell.template}
        errors = each.counts.get(Outcome.ERROR, 0)
        trials = f"{each.finished}/{'?' if each.n is None else each.n}"
        row = (*(str(cell[key]) for key in axes), trials, *_rate(each), str(errors or ""), _published(each))
        table.add_row(*map(safe_line, row))
    console.print(table)
    complete = sum(each.state == "complete" for each in cells)
    console.print(safe(f"{complete} of {len(cells)} cells complete"), soft_wrap=True)
    if any(each.finished and not is_live(each.cell.model) for each in cells):
        note = "Scripted, recorded or calibration agents: no figure here is of a live model."
        if any(each.finished and is_live(each.cell.model) for each in cells):
            note = "Cells of scripted, recorded or calibration agents say nothing about a live model."
        console.print(safe(note), style="yellow", soft_wrap=True)


def _differ(cells: Sequence[CellState], key: str) -> bool:
    return len({getattr(each.cell, key) for each in cells}) > 1


def _rate(each: CellState) -> tuple[str, str]:
    rate = each.rate
    if rate.rate is None:
        return "", ""
    return f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"


def _published(each: CellState) -> str:
    figure = each.figure
    if figure is None:
        return ""
    what = "" if figure.measure == "resisted" else f" {figure.measure}"
    rate = "no rate" if figure.rate is None else f"{figure.rate:.1%}{what}"
    return f"{rate} ({figure.source_id})"
