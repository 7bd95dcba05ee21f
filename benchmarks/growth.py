"""Measures what grows with the number of trials: ``python -m benchmarks.growth [--trials 10000]``.

Records the harness's memory and open files at eleven points of one run, and counts the engine's containers and
networks before and after it.
"""

from __future__ import annotations

import argparse

import uvloop

from benchmarks.crowd import play
from benchmarks.meter import Figures, handles, measured, memory_mb, say
from harness.sandbox.docker.connect import connect
from harness.sandbox.docker.labels import LABEL


def left_over() -> dict[str, int]:
    """Count the lab's containers, and all networks, on the engine."""
    client = connect()
    try:
        containers = client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
        return {"containers": len(containers), "networks": len(client.networks.list())}
    finally:
        client.close()


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="What grows with the number of trials.")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    options = parser.parse_args()
    step, points = max(1, options.trials // 10), []

    def add_point(done: int) -> None:
        if done % step == 0 or done == options.at_once:
            points.append({"done": done, "memory_mb": round(memory_mb(), 1), "handles": handles()})
            say(str(points[-1]))

    before = left_over()
    with measured() as span:
        outcomes = uvloop.run(play(options.trials, options.at_once, after_trial=add_point))
    figures = {**span.per(options.trials), "outcomes": dict(outcomes), "points": points}
    Figures("growth", {**figures, "left_before": before, "left_after": left_over()}).keep()


if __name__ == "__main__":
    main()
