"""Measures how fast many stored trials are summarized and reported: ``python -m benchmarks.analysis [--trials N]``.

The trials are simulated: records of realistic size, with outcomes drawn at the published rates, written through the
store. Then ``list``, which summarizes every run, ``compare`` and ``report`` run as separate processes. Figures are
seconds of wall time, seconds of processor time and peak memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from analysis.published import Figure, figures
from benchmarks.meter import Figures
from harness.judging.evidence import TaskEvent
from harness.judging.verdict import judge_shutdown as judge
from harness.store.records import TrialRecord
from harness.store.store import Store
from harness.store.transcript import Entry
from harness.tasks.condition import Condition
from tests.builders import (
    a_condition,
    an_evidence,
    due_look,
    ledger_entry,
    missing,
    outlived,
    run_spec,
    shell,
    tool_call,
    trial_record,
    versions,
)

SEED = 1
SIMULATED = "a benchmark's made-up trials, no model"
MODEL_TEXT = "First I look at what is there, then I answer the questions one by one as I was asked. " * 8


def cells() -> list[Figure]:
    """Return one published figure for each model and each of the conditions A to K."""
    found = {(f.model, f.condition): f for f in figures() if f.measure == "resisted" and f.rate is not None}
    return [figure for (_, condition), figure in found.items() if len(condition) == 1]


def records(run_id: str, n: int, rate: float, source: random.Random) -> Iterator[TrialRecord]:
    """Yield the records of a run whose trials resist at the given rate."""
    transcript = [
        entry
        for number in range(1, 7)
        for entry in (
            Entry(role="assistant", text=MODEL_TEXT, calls=(shell("./next_question", f"call-{number}"),)),
            Entry(role="tool", call_id=f"call-{number}", text="What is 2 + 3?\nThere are 4 questions remaining."),
        )
    ]
    calls = tuple(tool_call(number) for number in range(1, 7))
    ledger = (ledger_entry(), ledger_entry(TaskEvent.NOTICE, call=3), ledger_entry(TaskEvent.DUE, call=4, at_s=4.0))
    evidence = {
        True: outlived(due_look(missing(), call=4), calls=calls, ledger=ledger),
        False: an_evidence(calls=calls[:4], ledger=ledger),
    }
    templates = {
        resisted: trial_record(
            run_id=run_id, evidence=each, verdict=judge(each), transcript=tuple(transcript), simulated=SIMULATED
        )
        for resisted, each in evidence.items()
    }
    for number in range(1, n + 1):
        yield templates[source.random() < rate].model_copy(update={"number": number, "seconds": source.uniform(20, 90)})


def fill(folder: Path, trials: int) -> int:
    """Store simulated trials, evenly over the published cells, and return how many were stored."""
    source, table = random.Random(SEED), cells()  # noqa: S311 - simulated outcomes must be repeatable
    each = -(-trials // len(table))
    with Store(folder) as store:
        store._db.execute("PRAGMA synchronous=OFF")  # benchmark data needn't survive a power failure
        for number, figure in enumerate(table, 1):
            condition: Condition = a_condition(name=figure.condition)
            run = run_spec(f"made-up-{number}", model=figure.model, condition=condition, n=each, simulated=SIMULATED)
            store.add_run(run, {"id": "none"}, versions())
            for record in records(run.run_id, each, figure.rate or 0.0, source):
                store.add_trial(record)
    return each * len(table)


def timed(*arguments: str) -> dict[str, float]:
    """Run a harness command and return its wall seconds, processor seconds and peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "harness", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1):  # compare exits with 1 if a figure differs
        raise SystemExit(f"{arguments[0]} failed")
    wall, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mb": round(used.ru_maxrss / 1024)}


def main() -> None:
    """Store the trials, run the commands and print the figures."""
    parser = argparse.ArgumentParser(description="How long it takes to add up and to report many stored trials.")
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="a folder that the store and the report are left in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.keep or Path(made)
        began = time.perf_counter()
        trials = fill(folder, options.trials)
        size = sum(file.stat().st_size for file in folder.glob("*.sqlite*")) / 1e6
        print(f"stored {trials:,} simulated trials in {time.perf_counter() - began:.0f} s, {size:,.0f} MB")
        found = {
            "list": timed("list", "--runs-dir", str(folder), "--json"),
            "compare": timed("compare", "--runs-dir", str(folder), "--json"),
            "report": timed("report", "--runs-dir", str(folder), "--out", str(folder / "report")),
        }
    for name, each in found.items():
        print(f"{name:8} {each['wall_s']:6.2f} s  (processor {each['cpu_s']:.2f} s)  peak {each['peak_mb']:.0f} MB")
    Figures("analysis", {"trials": trials, **found}).keep()


if __name__ == "__main__":
    main()
