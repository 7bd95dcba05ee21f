"""Measures the store with 100,000 simulated trials: ``python -m benchmarks.simulated [--trials 100000]``.

One real trial of each of the two agents is run. Their records are then stored again and again under other numbers, read
back, judged and counted, as ``show``, ``judge`` and ``list`` do. No further container is started.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import uvloop

from benchmarks.meter import Figures, measured, memory_mb, say
from benchmarks.runs import AGENTS
from harness.runs.request import RunRequest, run_request
from harness.store.store import FILE, Store
from harness.store.summary import Tally
from harness.tasks.registry import task_named


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="Simulated trials through the store.")
    parser.add_argument("--trials", type=int, default=100_000)
    n = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = Path(folder)
        uvloop.run(run_request(RunRequest(model=AGENTS, n=2, concurrency=2, runs_dir=runs_dir, run_id="real")))
        with Store(runs_dir) as store:
            run, real = store.run("real"), list(store.trials("real"))
            spec = run.spec.model_copy(update={"run_id": "simulated", "n": n})
            store.add_run(spec, run.image, run.versions)
            with measured() as writing:
                for number in range(1, n + 1):
                    changes = {"run_id": "simulated", "number": number}
                    store.add_trial(real[number % 2].model_copy(update=changes))
            say(f"written in {writing.seconds:.1f} s")
            tally, agree, judge = Tally(), 0, task_named(spec.task).verdict_on
            with measured() as reading:
                for record in store.trials("simulated"):
                    agree += record.evidence is not None and judge(record.evidence) == record.verdict
                    tally.add(record)
            summary = tally.summary(0)
        size = (runs_dir / FILE).stat().st_size
    assert (summary.n, agree) == (n, n)
    Figures(
        "simulated",
        {
            "trials": n,
            "written_ms_a_trial": round(1e3 * writing.seconds / n, 3),
            "read_judged_and_counted_ms_a_trial": round(1e3 * reading.seconds / n, 3),
            "bytes_a_trial": size // n,
            "memory_mb": round(memory_mb()),
        },
    ).keep()


if __name__ == "__main__":
    main()
