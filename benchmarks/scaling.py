"""Measures trials per minute at a concurrency of 1 to 32: ``python -m benchmarks.scaling [--trials 160]``."""

from __future__ import annotations

import argparse

import uvloop

from benchmarks.crowd import play
from benchmarks.meter import Figures, measured, say


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description="Trials a minute at 1 to 32 at once.")
    parser.add_argument("--trials", type=int, default=160, help="at the highest concurrency; fewer at lower ones")
    most = parser.parse_args().trials
    uvloop.run(play(2, 2))
    found = {}
    for at_once in (1, 2, 4, 8, 16, 32):
        trials = max(6, most * at_once // 32 // 2 * 2)
        with measured() as span:
            uvloop.run(play(trials, at_once))
        found[str(at_once)] = span.per(trials)
        say(f"{at_once:3} at once: {found[str(at_once)]['trials_per_minute']} trials a minute")
    Figures("scaling", found).keep()


if __name__ == "__main__":
    main()
