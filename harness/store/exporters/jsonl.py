"""Exports trials as JSON Lines: each line is the complete record of one trial, together with its run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.store.exporter import Exporter
from harness.store.records import TrialRecord
from harness.store.store import StoredRun


def _write(runs: Iterable[tuple[StoredRun, Iterator[TrialRecord]]], out: Path) -> None:
    """Write one line for each trial.

    Each line contains the trial's run under the key ``run``, so that all lines have the same keys and each line can be
    used alone. The run's ``request``, which serves to resume the run, is left out because it contains paths of this
    host.
    """
    with out.open("w", encoding="utf-8", newline="\n") as file:
        for run, trials in runs:
            described = run.model_dump(mode="json", exclude={"request"})
            for trial in trials:
                file.write(json.dumps({**trial.model_dump(mode="json"), "run": described}) + "\n")


EXPORTER = Exporter("jsonl", "one complete trial a line, as JSON", ".jsonl", _write)
