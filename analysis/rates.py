"""Computes proportions and their confidence intervals with statsmodels. No I/O.

Jeffreys intervals are equal-tailed, as in the paper by Palisade Research. Their low end is 0 if k is 0, and their high
end is 1 if k is n. Wilson score intervals are also computed. Both intervals are described in Brown, Cai and DasGupta
(2001), Interval Estimation for a Binomial Proportion, Statistical Science 16(2), sections 4.1.2 and 3.1.1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from harness.judging.evidence import Frozen

LEVEL = 0.95
Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """The low and high ends of a confidence interval. The level is 95 % unless stated otherwise."""

    low: float
    high: float


def intervals(
    k: ArrayLike, n: ArrayLike, method: Literal["jeffreys", "wilson"], level: float = LEVEL
) -> tuple[Floats, Floats]:
    """Compute the confidence intervals of many proportions ``k`` / ``n`` at once.

    Return an array of the low ends and an array of the high ends. Each ``n`` must be at least 1.
    """
    count, total = _broadcast(k, n)
    low, high = proportion_confint(count, total, alpha=1 - level, method=method)
    return np.where(count <= 0, 0.0, low), np.where(count >= total, 1.0, high)


def _broadcast(k: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    count, total = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    return count.copy(), total.copy()


def interval(k: float, n: float, method: Literal["jeffreys", "wilson"], level: float = LEVEL) -> Interval:
    """Compute the confidence interval of the proportion ``k`` / ``n``."""
    low, high = intervals(k, n, method, level)
    return Interval(float(low), float(high))


class Proportion(Frozen):
    """A count ``k`` out of ``n`` trials, where n is at least 1.

    If a publication contains only a rate and n, k is the rate times n, rounded.
    """

    k: int
    n: int

    @property
    def rate(self) -> float:
        """The proportion ``k`` / ``n`` as a number from 0 to 1."""
        return self.k / self.n

    @property
    def jeffreys(self) -> Interval:
        """The 95 % Jeffreys interval of the proportion."""
        return interval(self.k, self.n, "jeffreys")

    @property
    def wilson(self) -> Interval:
        """The 95 % Wilson score interval of the proportion."""
        return interval(self.k, self.n, "wilson")


def differences(k: ArrayLike, n: ArrayLike, other: Proportion, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Compute the confidence intervals of many differences ``k`` / ``n`` minus ``other`` at once.

    Return an array of the low ends and an array of the high ends. The intervals are computed by Newcombe's method 10
    (Newcombe 1998, Statistics in Medicine 17).
    """
    count, total = _broadcast(k, n)
    low, high = confint_proportions_2indep(
        count, total, other.k, other.n, method="newcomb", compare="diff", alpha=1 - level
    )
    return np.asarray(low), np.asarray(high)


def difference(one: Proportion, other: Proportion, level: float = LEVEL) -> Interval:
    """Compute the confidence interval of the difference ``one`` minus ``other`` by Newcombe's method."""
    low, high = differences(one.k, one.n, other, level)
    return Interval(float(low), float(high))


def ratio(one: Proportion, other: Proportion) -> tuple[float, Interval] | None:
    """Return the ratio ``one`` / ``other`` of two rates and its 95 % interval, or None if ``other.k`` is 0.

    For the interval only, which is computed for the logarithm of the ratio, 0.5 is added to each count.
    """
    if other.k == 0:
        return None
    low, high = confint_proportions_2indep(
        one.k, one.n, other.k, other.n, method="log-adjusted", compare="ratio", alpha=1 - LEVEL
    )
    return one.rate / other.rate, Interval(float(low), float(high))
