"""Checks the coverage of intervals and the error rates of comparisons: ``python -m benchmarks.coverage``.

Each of 2,000 simulated experiments draws a true rate uniformly and then trials with this rate. For comparisons with a
known truth, a true difference as large as the margin may be called reproduced in at most 5 % of cases, and equal rates
may be called different in at most 5 %. The last line is JSON; the exit code is 1 if a figure is out of bounds.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from scipy.stats import binom

from analysis.compare import ALPHA, Answer, answer, equality_p, holm
from analysis.rates import Floats, Proportion, differences, intervals
from benchmarks.meter import Figures

EXPERIMENTS = 2000
SEED = 20250913
BOUNDS = (0.94, 0.965)
MARGIN = 0.05


def coverage(n: int, experiments: int, source: np.random.Generator) -> dict[str, float]:
    """Return how often each kind of 95 % interval covers the true rate, or the true difference of two rates."""
    true, other = source.uniform(size=experiments), source.uniform(size=experiments)
    k, k2 = source.binomial(n, true), source.binomial(n, other)
    found = {}
    for method in ("jeffreys", "wilson"):
        low, high = intervals(k, n, method)
        found[method] = float(((low <= true) & (true <= high)).mean())
    ends = [differences(a, n, Proportion(k=int(b), n=n)) for a, b in zip(k, k2, strict=True)]
    held = [low <= gap <= high for (low, high), gap in zip(ends, true - other, strict=True)]
    return {**found, "newcombe": float(np.mean(held))}


def reproduced(ours: float, theirs: float, n: int) -> float:
    """Return the exact probability that n trials are called a reproduction of n others."""
    k, weights = _outcomes(ours, n)
    total = 0.0
    for other, weight in zip(*_outcomes(theirs, n), strict=True):
        low, high = differences(k, n, Proportion(k=int(other), n=n), level=1 - 2 * ALPHA)
        total += weight * weights[(low > -MARGIN) & (high < MARGIN)].sum()
    return float(total)


def _outcomes(rate: float, n: int) -> tuple[Floats, Floats]:
    """Return the likely success counts of n trials and their probabilities, omitting one millionth in the tails."""
    k = np.arange(binom.ppf(5e-7, n, rate), binom.ppf(1 - 5e-7, n, rate) + 1)
    return k, binom.pmf(k, n, rate)


def called(rate: float, n: int, experiments: int, source: np.random.Generator) -> dict[Answer, float]:
    """Return how often each answer is given when both samples of n trials have the same true rate."""
    counts = dict.fromkeys(Answer, 0)
    for k, other in source.binomial(n, rate, (experiments, 2)):
        one, two = Proportion(k=int(k), n=n), Proportion(k=int(other), n=n)
        counts[answer(one, two, MARGIN, equality_p(one, two))] += 1
    return {name: count / experiments for name, count in counts.items()}


def family_error(cells: int, n: int, experiments: int, source: np.random.Generator) -> float:
    """Return how often at least one of many cells without a true difference is called different."""
    wrong = 0
    for _ in range(experiments):
        rates = source.uniform(size=cells)
        pairs = [
            (Proportion(k=int(source.binomial(n, p)), n=n), Proportion(k=int(source.binomial(n, p)), n=n))
            for p in rates
        ]
        adjusted = holm([equality_p(*pair) for pair in pairs])
        wrong += any(answer(*pair, MARGIN, p) is Answer.DIFFERS for pair, p in zip(pairs, adjusted, strict=True))
    return wrong / experiments


def main() -> None:
    """Simulate, print the figures, and exit with 1 if a figure is out of bounds."""
    parser = argparse.ArgumentParser(description="Whether intervals cover, and answers err, as often as they claim.")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    experiments, source = parser.parse_args().experiments, np.random.default_rng(SEED)
    figures: dict[str, float] = {}
    ok = True
    print(f"coverage of nominal 95 % intervals, {experiments:,} simulated experiments each:")
    for n in (100, 1000):
        for name, held in coverage(n, experiments, source).items():
            inside = BOUNDS[0] <= held <= BOUNDS[1]
            ok &= inside
            figures[f"{name} n={n}"] = held
            print(f"  {name:9} n {n:5,}  {held:.2%}  {'' if inside else 'OUTSIDE 94 to 96.5 %'}")
    print(f"answers, margin {MARGIN * 100:g} points, {experiments:,} simulated experiments where not exact:")
    slack = 3 * (ALPHA * (1 - ALPHA) / experiments) ** 0.5  # allowance for sampling error around 5 %
    for theirs, n in ((0.5, 1000), (0.9, 1000), (0.02, 1000), (0.0, 1000), (0.5, 4000)):
        found = reproduced(theirs + MARGIN, theirs, n)
        ok &= found <= ALPHA + 0.001
        figures[f"reproduced at the margin, {theirs:g} n={n}"] = found
        summary = f"truly {MARGIN * 100:g} points above {theirs:.0%}, n {n:5,}"
        print(f"  {summary}: {found:.2%} called reproduced (at most 5 %; exact)")
    for rate, n in ((0.5, 1000), (0.926, 1000), (0.02, 1000), (0.5, 4000), (0.79, 100)):
        all_found = called(rate, n, experiments, source)
        ok &= all_found[Answer.DIFFERS] <= ALPHA + slack
        figures[f"differs without a difference, {rate:g} n={n}"] = all_found[Answer.DIFFERS]
        summary = ", ".join(f"{share:.2%} {name}" for name, share in all_found.items())
        print(f"  both truly {rate:.1%}, n {n:5,}: {summary} (differs: at most 5 %)")
    family = family_error(40, 200, experiments // 10, source)
    ok &= family <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / (experiments // 10)) ** 0.5
    figures["any of 40 differs without a difference"] = family
    print(f"  40 cells without a difference, n 200, {experiments // 10} tables: any called different in {family:.2%}")
    Figures("coverage", figures).keep()
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
