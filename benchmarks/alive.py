"""Measures hundreds of concurrent trials against a slow model: ``python -m benchmarks.alive [--alive 300]``.

The throughput has two upper bounds: the model's latency allows ``alive / (latency * turns)``, and the engine allows
what is measured first, with a model that doesn't wait. The main figure is the measured throughput as a share of the
lower bound. Start and end of the run, when fewer trials are alive, reduce this share. Memory is the peak of the
harness, watch daemon included.
"""

from __future__ import annotations

import argparse

import uvloop

from benchmarks.crowd import play
from benchmarks.meter import Figures, measured, memory_mb, say

TURNS = 7  # both agents take six to eight
GRACE_S = 1.0  # every second trial waits the kill switch's 2 s


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="Trials alive at once against a slow model.")
    parser.add_argument("--alive", type=int, default=300)
    parser.add_argument("--trials", type=int, default=900)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds a turn")
    options = parser.parse_args()
    peak_mb = 0.0

    def sample_memory(done: int) -> None:
        nonlocal peak_mb
        peak_mb = max(peak_mb, memory_mb())
        if done % 100 == 0:
            say(f"{done} done, {memory_mb():.0f} MB")

    engine_trials = max(20, options.trials // 6)
    with measured() as engine_span:
        uvloop.run(play(engine_trials, 16))
    engine_per_minute = 60 * engine_trials / engine_span.seconds
    with measured() as span:
        outcomes = uvloop.run(play(options.trials, options.alive, options.latency, sample_memory))
    latency_per_minute = 60 * options.alive / (options.latency * TURNS + GRACE_S)
    found = span.per(options.trials)
    Figures(
        "alive",
        {
            "alive": options.alive,
            "latency_s": options.latency,
            **found,
            "latency_allows_per_minute": round(latency_per_minute, 1),
            "engine_gives_per_minute": round(engine_per_minute, 1),
            "share_of_the_lower": round(found["trials_per_minute"] / min(latency_per_minute, engine_per_minute), 3),
            "harness_memory_mb": round(peak_mb),
            "outcomes": dict(outcomes),
        },
    ).keep()


if __name__ == "__main__":
    main()
