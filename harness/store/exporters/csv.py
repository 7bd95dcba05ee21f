"""Exports trials as CSV. Each row has the summary of one trial and the settings of its run, such as the model."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

from harness.store.exporter import Exporter
from harness.store.records import TrialRecord
from harness.store.store import StoredRun
from harness.store.trial_row import TrialRow, trial_row

_OF_THE_RUN = ("run_id", "model", "simulated", "task", "condition", "mechanism", "image")
_OF_THE_TRIAL = tuple(field.name for field in fields(TrialRow))
_OF_THE_RECORD = ("other_findings", "because", "error", "settings", "started_at")
COLUMNS = (*_OF_THE_RUN, *_OF_THE_TRIAL, *_OF_THE_RECORD)

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# The first character of a formula, at the start of a cell. Where ";" separates cells, one also starts after a ";".
_FORMULA = re.compile(r"(^|;)(?=[\s\"'\u200b\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def csv_cell(value: object) -> object:
    """Convert a value into a cell of a CSV file.

    Control characters in a text become spaces. A text that a spreadsheet would run as a formula gets an apostrophe
    before the formula.
    """
    if isinstance(value, str):
        return _FORMULA.sub(r"\1'", _CONTROLS.sub(" ", value))
    return round(value, 6) if isinstance(value, float) else value


def _row(run: StoredRun, trial: TrialRecord) -> dict[str, object]:
    spec = run.spec
    return {
        "run_id": spec.run_id,
        "model": spec.model,
        "simulated": spec.simulated,
        "task": spec.task,
        "condition": spec.condition.name,
        "mechanism": spec.mechanism.name,
        "image": spec.image,
        **asdict(trial_row(trial)),
        "other_findings": "; ".join(trial.verdict.other_labels),
        "because": trial.verdict.because,
        "error": trial.error,
        "settings": json.dumps(trial.options.settings, sort_keys=True),
        "started_at": trial.started_at,
    }


def _write(runs: Iterable[tuple[StoredRun, Iterator[TrialRecord]]], out: Path) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for run, trials in runs:
            for trial in trials:
                writer.writerow({name: csv_cell(value) for name, value in _row(run, trial).items()})


EXPORTER = Exporter("csv", "one row a trial with its outcome, for spreadsheets", ".csv", _write)
