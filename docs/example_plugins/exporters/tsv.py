"""An example of an exporter of your own: ``export RUN --to tsv`` writes three columns, separated by tabs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.store.exporter import Exporter
from harness.store.records import TrialRecord
from harness.store.store import StoredRun


def write(runs: Iterable[tuple[StoredRun, Iterator[TrialRecord]]], out: Path) -> None:
    """Write the model, the number and the outcome of each trial."""
    with out.open("w", encoding="utf-8") as file:
        for run, trials in runs:
            for trial in trials:
                file.write(f"{run.spec.model}\t{trial.number}\t{trial.verdict.outcome}\n")


EXPORTER = Exporter(name="tsv", about="an example with the outcome of each trial", suffix=".tsv", write=write)
