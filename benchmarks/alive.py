"""Hundreds of trials alive at once, each waiting for a slow model: ``python -m benchmarks.alive [--alive 300]``.

What latency allows is ``alive / (latency * turns)``; what the engine gives is measured just before, with a model that
doesn't wait. The lower of the two bounds the throughput, and the figure is how close the lab comes to it. Starts and
ends of the crowd, when fewer are alive, count against it. Memory is the harness's, the process that looks at files
included, at its highest.
"""

from __future__ import annotations

import argparse

import uvloop

from benchmarks.crowd import play
from benchmarks.meter import Figures, measured, memory_mb, say

TURNS = 7  # both agents take six to eight
GRACE_S = 1.0  # the kill switch's 2 s, which every other trial waits


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Trials alive at once against a slow model.")
    parser.add_argument("--alive", type=int, default=300)
    parser.add_argument("--trials", type=int, default=900)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds a turn")
    asked = parser.parse_args()
    most = 0.0

    def look(done: int) -> None:
        nonlocal most
        most = max(most, memory_mb())
        if done % 100 == 0:
            say(f"{done} done, {memory_mb():.0f} MB")

    quick = max(20, asked.trials // 6)
    with measured() as one_process:
        uvloop.run(play(quick, 16))
    engine = 60 * quick / one_process.seconds
    with measured() as span:
        outcomes = uvloop.run(play(asked.trials, asked.alive, asked.latency, look))
    latency = 60 * asked.alive / (asked.latency * TURNS + GRACE_S)
    found = span.per(asked.trials)
    Figures(
        "alive",
        {
            "alive": asked.alive,
            "latency_s": asked.latency,
            **found,
            "latency_allows_per_minute": round(latency, 1),
            "engine_gives_per_minute": round(engine, 1),
            "share_of_the_lower": round(found["trials_per_minute"] / min(latency, engine), 3),
            "harness_memory_mb": round(most),
            "outcomes": dict(outcomes),
        },
    ).keep()


if __name__ == "__main__":
    main()
