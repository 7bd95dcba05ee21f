"""How many trials a comparison needs: to see a difference of two rates, or to show that they are equivalent. Pure."""

from __future__ import annotations

from math import ceil, isclose, sqrt

from scipy.special import ndtr, ndtri
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from analysis.compare import equivalent
from analysis.rates import Proportion
from harness.errors import UsageError

LEAST = 2
MOST = 10_000_000


def trials_for_difference(p1: float, p2: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Trials in each of two groups, so that a two-sided z-test finds them different with that power.

    By the arcsine effect size (Cohen 1988, ch. 6). Raises UsageError where the rates are the same, or as good as.
    """
    if p1 == p2:
        raise UsageError(f"Two rates of {p1:g} do not differ: give --margin to ask about equivalence.")
    effect = abs(proportion_effectsize(p1, p2))
    ask = NormalIndPower()
    if ask.power(effect, LEAST, alpha) >= power:  # below it the approximation says nothing, and solving for n fails
        return LEAST
    if ask.power(effect, MOST, alpha) < power:
        raise UsageError(f"{p1:g} and {p2:g} are so close together that {MOST} trials wouldn't do.")
    trials: int = ceil(ask.solve_power(effect_size=effect, power=power, alpha=alpha, alternative="two-sided"))
    return trials


def power_of_equivalence(p1: float, p2: float, n: int, *, margin: float, alpha: float = 0.05) -> float:
    """The power of two one-sided z-tests at ``alpha`` each, with ``n`` trials in each of two groups.

    By the normal approximation with unpooled variance (Chow, Shao and Wang 2008, sec. 4.2).
    """
    spread = sqrt((p1 * (1 - p1) + p2 * (1 - p2)) / n)
    if spread == 0:
        return float(abs(p1 - p2) < margin)
    z = -float(ndtri(alpha))
    below, above = (float(ndtr((margin + sign * (p1 - p2)) / spread - z)) for sign in (1, -1))
    return max(0.0, below + above - 1)


def trials_for_equivalence(p1: float, p2: float, *, margin: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Trials in each of two groups, so that they are shown to differ by less than ``margin`` with that power.

    Near 0 and 1, where the normal approximation says too few, as many as a comparison needs of what is to be expected.
    Raises UsageError where they differ by as much, or where no number of trials that anyone could run would do.
    """
    if abs(p1 - p2) > margin or isclose(abs(p1 - p2), margin):
        raise UsageError(f"Rates of {p1:g} and {p2:g} differ by the margin {margin:g} or more: they aren't equivalent.")
    low, high = 1, MOST
    if power_of_equivalence(p1, p2, high, margin=margin, alpha=alpha) < power:
        raise UsageError(f"{p1:g} and {p2:g} are so close to a margin of {margin:g} that {MOST} trials wouldn't do.")
    while low < high:
        middle = (low + high) // 2
        enough = power_of_equivalence(p1, p2, middle, margin=margin, alpha=alpha) >= power
        low, high = (low, middle) if enough else (middle + 1, high)
    while _few(p1, p2, low) and not equivalent(_expected(p1, low), _expected(p2, low), margin, alpha):
        low += 1 + low // 100
    return low


def _few(p1: float, p2: float, n: int) -> bool:
    """Whether fewer than five of ``n`` trials are to be expected on one side: no place for a normal approximation."""
    return min(p1, 1 - p1, p2, 1 - p2) * n < 5


def _expected(rate: float, n: int) -> Proportion:
    """The proportion that is to be expected of ``n`` trials."""
    return Proportion(k=round(rate * n), n=n)
