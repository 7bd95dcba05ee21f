"""Compares the lab's trials per minute with other tools: ``python -m benchmarks.throughput [--peer DIR]``.

The sides take turns, each in its own process, and play the same two agents (benchmarks/two-agents.yaml): this lab with
everything it does in a run, the Docker SDK alone (benchmarks/naive.py), and Inspect AI if it was set up in DIR by
``shared/bench/peer_inspect/setup.sh`` beside the repository. Each side is measured at the same concurrency and at its
own best concurrency. Ratios are medians over the rounds; the last line is JSON.

The lab gives a kill switch 2 s to take the machine down before a trial goes on; the other sides don't.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import naive
from benchmarks.meter import Figures, measured, medians, say
from benchmarks.runs import timed, warmed
from harness.judging.verdict import Outcome
from harness.sandbox.docker.connect import OWN_ENGINE, connect

PEER = Path(__file__).parents[2] / "shared" / "bench" / "peer_inspect"
SAME = 4  # the concurrency at which every side is measured
BEST = {"lab": 24, "naive": 4, "inspect": 8}
SHARE = {"lab": 6, "naive": 1, "inspect": 1}  # trials of each side, so that all take a similar time

Row = dict[str, float]


def lab(trials: int, at_once: int) -> Row:
    """Measure the lab with verification, transcripts, verdicts and the store, as in any run."""
    with tempfile.TemporaryDirectory() as folder:
        runs_dir = Path(folder)
        warmed(runs_dir)
        job, span = timed(runs_dir, trials, at_once)
    found, half = tuple(job.summary.counts[each] for each in (Outcome.COMPLIED, Outcome.RESISTED)), trials // 2
    assert found == (half, half), f"complied and resisted should be {half} each, and are {found}"
    return span.per(trials)


def by_sdk(trials: int, at_once: int) -> Row:
    """Measure the Docker SDK alone (benchmarks/naive.py)."""
    naive.run(2, 2)
    with measured() as span:
        naive.run(trials, at_once)
    return span.per(trials)


SIDES = {"lab": lab, "naive": by_sdk}


def inspect(peer: Path, trials: int, at_once: int) -> Row:
    """Measure Inspect AI with its own runner."""
    environment = {**os.environ, "DOCKER_CONFIG": str(peer / "docker"), "DOCKER_HOST": _address()}
    python = peer / "venv" / "bin" / "python"
    with measured() as span:  # trials_per_minute comes from the runner, whose clock starts after its imports
        done = subprocess.run(
            [python, "run.py", str(trials), str(at_once)], cwd=PEER, env=environment, stdout=subprocess.PIPE, check=True
        )
    reported = json.loads(done.stdout.splitlines()[-1])
    return {
        "trials": trials,
        "trials_per_minute": reported["trials_per_minute"],
        "cpu_ms_per_trial": round(1e3 * span.machine_s / trials, 1),
        "harness_cpu_ms_per_trial": round(1e3 * span.own_s / trials, 1),
    }


def _address() -> str:
    """Return the engine's address for the docker command that Inspect AI uses."""
    client = connect()
    try:
        found = str(client.api.base_url)
    finally:
        client.close()
    return os.environ.get("DOCKER_HOST") or (OWN_ENGINE.address if found.startswith("http+docker") else found)


def one(side: str, peer: Path | None, trials: int, at_once: int) -> Row:
    """Measure one side once, in its own process."""
    if side == "inspect":
        assert peer is not None
        return inspect(peer, trials, at_once)
    command = [
        sys.executable,
        "-m",
        "benchmarks.throughput",
        "--side",
        side,
        f"--trials={trials}",
        f"--at-once={at_once}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def rounds(peer: Path | None, trials: int, times: int) -> Iterator[dict[str, dict[str, Row]]]:
    """Yield each round's figures: every side at the same concurrency and at its best one."""
    sides = ["lab", "naive", *(["inspect"] if peer else [])]
    for number in range(times):
        seen: dict[str, dict[str, Row]] = {"same": {}, "best": {}}
        for side in sides:
            for which, at_once in (("same", SAME), ("best", BEST[side])):
                if which == "best" and at_once == SAME:
                    seen[which][side] = seen["same"][side]
                    continue
                seen[which][side] = one(side, peer, trials * SHARE[side], at_once)
                row = seen[which][side]
                say(
                    f"round {number + 1}: {side:8} {at_once:3} at once  {row['trials_per_minute']:7.1f} trials/min  "
                    f"{row['cpu_ms_per_trial']:7.1f} ms CPU, {row['harness_cpu_ms_per_trial']:.1f} the harness's"
                )
        yield seen


def summed(seen: list[dict[str, dict[str, Row]]]) -> dict[str, object]:
    """Return each side's medians, and the medians of the rounds' ratios."""
    found: dict[str, object] = {"rounds": len(seen)}
    for which in ("same", "best"):
        sides = seen[0][which]
        found[f"at_{which}_concurrency"] = {
            side: {
                "concurrency": SAME if which == "same" else BEST[side],
                **medians([each[which][side] for each in seen]),
            }
            for side in sides
        }
        for other in set(sides) - {"lab"}:
            ratios = [
                each[which]["lab"]["trials_per_minute"] / each[which][other]["trials_per_minute"] for each in seen
            ]
            work = [each[which][other]["cpu_ms_per_trial"] / each[which]["lab"]["cpu_ms_per_trial"] for each in seen]
            found[f"times_{other}_at_{which}"] = round(statistics.median(ratios), 1)
            found[f"times_less_cpu_than_{other}_at_{which}"] = round(statistics.median(work), 1)
    return found


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="Trials a minute against other ways.")
    parser.add_argument("--trials", type=int, default=20, help="trials a side and round, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="where Inspect AI was set up")
    parser.add_argument("--side", choices=SIDES, help="measure one side once, and print its figures")
    parser.add_argument("--at-once", type=int, default=SAME)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.trials, options.at_once)))
        return
    if options.peer is None:
        say("Inspect AI is left out: name its folder with --peer")
    Figures("throughput", summed(list(rounds(options.peer, options.trials, options.rounds)))).keep()


if __name__ == "__main__":
    main()
