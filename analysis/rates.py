"""Proportions with their intervals. Pure; the mathematics is statsmodels' and scipy's.

Jeffreys intervals as the paper gives them, equal-tailed and closed at 0 and 1 where nothing or everything was counted,
and Wilson's score intervals beside them: Brown, Cai and DasGupta (2001), Interval Estimation for a Binomial Proportion,
Statistical Science 16(2), sections 4.1.2 and 3.1.1.
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
    """Two ends, at 95 % unless said otherwise."""

    low: float
    high: float


def intervals(
    k: ArrayLike, n: ArrayLike, method: Literal["jeffreys", "wilson"], level: float = LEVEL
) -> tuple[Floats, Floats]:
    """Low and high ends for many proportions at once; ``n`` is at least 1."""
    count, total = _together(k, n)
    low, high = proportion_confint(count, total, alpha=1 - level, method=method)
    return np.where(count <= 0, 0.0, low), np.where(count >= total, 1.0, high)


def _together(k: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    count, total = np.broadcast_arrays(np.asarray(k, float), np.asarray(n, float))
    return count.copy(), total.copy()


def interval(k: float, n: float, method: Literal["jeffreys", "wilson"], level: float = LEVEL) -> Interval:
    """The interval of one proportion."""
    low, high = intervals(k, n, method, level)
    return Interval(float(low), float(high))


class Proportion(Frozen):
    """``k`` of ``n``; ``n`` is at least 1. A published k may be a rate times n, rounded."""

    k: int
    n: int

    @property
    def rate(self) -> float:
        """K of n."""
        return self.k / self.n

    @property
    def jeffreys(self) -> Interval:
        """The interval that stands beside a rate."""
        return interval(self.k, self.n, "jeffreys")

    @property
    def wilson(self) -> Interval:
        """The interval for those who are used to it."""
        return interval(self.k, self.n, "wilson")


def differences(k: ArrayLike, n: ArrayLike, other: Proportion, level: float = LEVEL) -> tuple[Floats, Floats]:
    """The intervals of many proportions minus another: Newcombe's (1998, Statistics in Medicine 17, method 10)."""
    count, total = _together(k, n)
    low, high = confint_proportions_2indep(
        count, total, other.k, other.n, method="newcomb", compare="diff", alpha=1 - level
    )
    return np.asarray(low), np.asarray(high)


def difference(one: Proportion, other: Proportion, level: float = LEVEL) -> Interval:
    """The interval of ``one`` minus ``other``."""
    low, high = differences(one.k, one.n, other, level)
    return Interval(float(low), float(high))


def ratio(one: Proportion, other: Proportion) -> tuple[float, Interval] | None:
    """``one`` over ``other`` with its interval (log ratio, a half added to each count); None where other has none."""
    if other.k == 0:
        return None
    low, high = confint_proportions_2indep(
        one.k, one.n, other.k, other.n, method="log-adjusted", compare="ratio", alpha=1 - LEVEL
    )
    return one.rate / other.rate, Interval(float(low), float(high))
