"""The commands ``report`` and ``compare``, which compare stored runs with published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from harness.cli.options import AsJson, RunsDir, print_json
from harness.errors import UsageError
from harness.store.store import Store
from harness.terminal.text import print_error, print_note, safe

if TYPE_CHECKING:
    from analysis.report.report import RunReport

Runs = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN]...", help="Ids of runs, or 'last'. [default: all runs]")
]
Margin = Annotated[
    float | None,
    typer.Option(
        help="Equivalence margin in percentage points; fix it before the run. "
        "[default: what an experiment's file fixed; 5]"
    ),
]


def report(
    runs: Runs = None,
    *,
    out: Annotated[Path | None, typer.Option(help="A folder for all three files. [default: RUNS_DIR/report]")] = None,
    html: Annotated[Path | None, typer.Option(help="Write only the HTML page, to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write only the Markdown, to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write only the CSV table, to this file.")] = None,
    margin: Margin = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write an HTML, Markdown and CSV report that compares runs with published figures."""
    from analysis.report.page import page  # noqa: PLC0415 - seconds that only this command pays
    from analysis.report.table import as_csv  # noqa: PLC0415 - as above
    from analysis.report.table import markdown as as_markdown  # noqa: PLC0415 - as above

    found = _report(runs, runs_dir, margin)
    folder = out or (None if html or markdown or csv else runs_dir / "report")
    files = {
        html or (folder and folder / "report.html"): page,
        markdown or (folder and folder / "report.md"): as_markdown,
        csv or (folder and folder / "report.csv"): as_csv,
    }
    for file, make in files.items():
        if file:
            _write(file, make(found))
            print_note(f"wrote {file}")


def compare(
    runs: Runs = None,
    margin: Margin = None,
    runs_dir: RunsDir = Path("runs"),
    as_json_: AsJson = False,
) -> None:
    """Compare runs with published figures. The exit code is 1 if a figure differs."""
    from analysis.compare import Answer  # noqa: PLC0415 - as above

    found = _report(runs, runs_dir, margin)
    if as_json_:
        print_json({"margin": found.margin, "answers": dict(found.answers), "comparisons": _as_json(found)})
    else:
        _print(Console(), found)
    if differing := found.answers[Answer.DIFFERS]:
        print_error(f"{differing} of {len(found.comparisons)} figures differ from the published ones.")
        raise typer.Exit(1)


def _report(runs: list[str] | None, runs_dir: Path, margin: float | None) -> RunReport:
    """Build a report on the named runs, or on all runs if ``runs`` is None.

    ``margin`` is the equivalence margin in percentage points. Raises UsageError if a run doesn't exist, or if no run
    has a finished trial.
    """
    from analysis.cells import read_cells  # noqa: PLC0415 - as above
    from analysis.report.report import RunReport  # noqa: PLC0415 - as above

    if margin is not None and not 0 < margin < 100:
        raise UsageError(f"--margin {margin:g} won't do: it is in percentage points, above 0 and below 100.")
    with Store(runs_dir, create=False) as store:
        chosen = {run.spec.run_id: run for run in ([store.run(name) for name in runs] if runs else store.runs())}
        cells, agreements = read_cells(store, chosen.values()), store.agreements()
    if not cells:
        raise UsageError("These runs have no finished trial yet, so there is nothing to report.")
    return RunReport(cells, list(chosen.values()), margin and margin / 100, agreements)


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} can't be written: {error.strerror}.") from error


def _as_json(found: RunReport) -> list[dict[str, Any]]:
    cells = {cell.key: cell for cell in found.cells}
    return [
        {
            **item.key.model_dump(),
            "measure": item.measure,
            "k": item.ours.k,
            "n": item.ours.n,
            "rate": item.ours.rate,
            "sabotaged": cells[item.key].sabotage.total(),
            "sabotage": {kind.value: count for kind, count in cells[item.key].sabotage.items()},
            "published": item.published.figure.model_dump(),
            "published_k": item.theirs.k,
            "published_n": item.theirs.n,
            "published_n_basis": item.published.basis,
            "margin": item.margin,
            "difference": item.difference,
            "difference_low": item.interval.low,
            "difference_high": item.interval.high,
            "p_holm": item.adjusted,
            "answer": item.answer.value,
            "trials_needed": item.needed,
        }
        for item in found.comparisons
    ]


def _print(console: Console, found: RunReport) -> None:
    from analysis.report import formatting  # noqa: PLC0415 - as above

    colours = {"reproduced": "green", "differs": "red", "not enough trials": "yellow"}
    table = Table(pad_edge=False)
    for name in ("model", "played", "condition", "ours", "sabotaged", "published", "difference, points", "answer"):
        table.add_column(name, overflow="fold")
    for row in found.rows:
        cell, compared = row.cell, row.comparison
        ours = cell.proportion(compared.measure if compared else "resisted")
        rate = f"{formatting.percent(ours.rate)} ({formatting.of(ours)})" if ours else "nothing judged"
        cells = (cell.key.model, cell.key.played, formatting.condition_of(cell.key), rate)
        published = (
            f"{formatting.rate_of(row.published)}, {formatting.n_of(row.published)}" if row.published else "none"
        )
        apart, says = "", f"not compared: {row.published.basis}" if row.published else ""
        if compared:
            apart = f"{formatting.points(compared.difference)} ({formatting.points_between(compared.interval)})"
            says = formatting.answer_of(compared)
        sabotaged = formatting.sabotage(cell.sabotage, cell.sabotaged)
        texts = [safe(each) for each in (*cells, sabotaged, published, apart, says)]
        texts[-1].stylize(colours.get(compared.answer if compared else "", "dim"))
        table.add_row(*texts)
    console.print(table)
    for words_ in found.played_words:
        console.print(safe(f"Played by {words_}."), style="yellow")
