"""Computes how many trials are needed to show that two rates differ, or that they are equivalent. No I/O."""

from __future__ import annotations

from math import ceil, isclose, sqrt

from scipy.special import ndtr, ndtri
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from analysis.compare import equivalent
from analysis.rates import Proportion
from harness.errors import UsageError

MIN_TRIALS = 2
MAX_TRIALS = 10_000_000


def trials_for_difference(p1: float, p2: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many trials each of two groups needs to show that their rates ``p1`` and ``p2`` differ.

    The test is a two-sided z-test, and ``power`` is the probability that the test shows the difference. The effect size
    is the arcsine effect size (Cohen 1988, chapter 6). Raises UsageError if the rates are equal or too close together.
    """
    if p1 == p2:
        raise UsageError(f"Two rates of {p1:g} do not differ: give --margin to ask about equivalence.")
    effect = abs(proportion_effectsize(p1, p2))
    test = NormalIndPower()
    if test.power(effect, MIN_TRIALS, alpha) >= power:  # with fewer the approximation is void, and solving for n fails
        return MIN_TRIALS
    if test.power(effect, MAX_TRIALS, alpha) < power:
        raise UsageError(f"{p1:g} and {p2:g} are so close together that {MAX_TRIALS} trials wouldn't be enough.")
    trials: int = ceil(test.solve_power(effect_size=effect, power=power, alpha=alpha, alternative="two-sided"))
    return trials


def power_of_equivalence(p1: float, p2: float, n: int, *, margin: float, alpha: float = 0.05) -> float:
    """Return the power of an equivalence test with ``n`` trials per group.

    The power is the probability that the test shows that the rates ``p1`` and ``p2`` differ by less than ``margin``.
    The test consists of two one-sided z-tests, each at the level ``alpha``. The power is computed by a normal
    approximation with unpooled variance (Chow, Shao and Wang 2008, section 4.2).
    """
    spread = sqrt((p1 * (1 - p1) + p2 * (1 - p2)) / n)
    if spread == 0:
        return float(abs(p1 - p2) < margin)
    z = -float(ndtri(alpha))
    below, above = (float(ndtr((margin + sign * (p1 - p2)) / spread - z)) for sign in (1, -1))
    return max(0.0, below + above - 1)


def trials_for_equivalence(p1: float, p2: float, *, margin: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many trials each of two groups needs to show that their rates differ by less than ``margin``.

    ``p1`` and ``p2`` are the true rates, and ``power`` is the probability that the test shows equivalence. The number
    is computed by a normal approximation, which gives too few trials for rates near 0 and 1. For such rates, the number
    is raised until the expected counts pass the equivalence test. Raises UsageError if the rates differ by ``margin``
    or more, or if even ``MAX_TRIALS`` trials would not be enough.
    """
    if abs(p1 - p2) > margin or isclose(abs(p1 - p2), margin):
        raise UsageError(f"Rates of {p1:g} and {p2:g} differ by the margin {margin:g} or more: they aren't equivalent.")
    low, high = 1, MAX_TRIALS
    if power_of_equivalence(p1, p2, high, margin=margin, alpha=alpha) < power:
        raise UsageError(
            f"The difference of {p1:g} and {p2:g} is so close to the margin {margin:g} "
            f"that {MAX_TRIALS} trials wouldn't be enough."
        )
    while low < high:
        middle = (low + high) // 2
        enough = power_of_equivalence(p1, p2, middle, margin=margin, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    while _few(p1, p2, low) and not equivalent(_expected(p1, low), _expected(p2, low), margin, alpha):
        low += 1 + low // 100
    return low


def _few(p1: float, p2: float, n: int) -> bool:
    """Return whether ``n`` trials are too few for the normal approximation at the rates ``p1`` and ``p2``.

    The normal approximation needs at least five expected successes and five expected failures at each rate.
    """
    return min(p1, 1 - p1, p2, 1 - p2) * n < 5


def _expected(rate: float, n: int) -> Proportion:
    """Return the proportion of successes expected in ``n`` trials if the true rate is ``rate``."""
    return Proportion(k=round(rate * n), n=n)
