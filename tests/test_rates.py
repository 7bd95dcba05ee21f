from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.rates import Proportion, difference, intervals, ratio
from harness.store.summary import Rate
from tests.builders import law

counts = st.integers(1, 2000).flatmap(lambda n: st.builds(Proportion, k=st.integers(0, n), n=st.just(n)))


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(926, 1000, 0.909, 0.941), (24, 1000, 0.016, 0.035), (79, 100, 0.7026, 0.8609), (973, 1000, 0.962, 0.982)],
)
def test_the_jeffreys_interval_is_the_papers(k: int, n: int, low: float, high: float) -> None:
    """The Jeffreys intervals computed from the published counts equal the published intervals."""
    assert Proportion(k=k, n=n).jeffreys == pytest.approx((low, high), abs=0.0006)


@law
@given(counts)
def test_intervals_hold_their_rate(some: Proportion) -> None:
    """Both intervals contain the rate, stay within 0 and 1, and reach 0 or 1 only if k is 0 or n."""
    for low, high in (some.jeffreys, some.wilson):
        assert 0 <= low <= some.rate <= high <= 1
        assert (low == 0) == (some.k == 0)
        assert (high == 1) == (some.k == some.n)


@law
@given(counts)
def test_both_wilsons_agree(some: Proportion) -> None:
    """The lab's own Wilson interval equals that of the statistics package."""
    rate = Rate.of(some.k, some.n)
    assert (rate.low, rate.high) == pytest.approx(some.wilson, abs=1e-9)


@law
@given(counts, counts)
def test_differences_mirror_each_other(one: Proportion, other: Proportion) -> None:
    """Swapping the two proportions mirrors the interval of their difference, which contains the observed difference."""
    low, high = difference(one, other)
    assert (-high, -low) == pytest.approx(difference(other, one), abs=1e-9)
    assert low - 1e-9 <= one.rate - other.rate <= high + 1e-9


def test_many_intervals_are_each_ones() -> None:
    """Intervals computed for many proportions at once equal those computed one by one."""
    low, high = intervals([0, 3, 10], 10, "jeffreys")
    assert [*zip(low, high, strict=True)] == [Proportion(k=k, n=10).jeffreys for k in (0, 3, 10)]


def test_a_ratio_needs_something_below() -> None:
    """The ratio of two rates lies within its interval, and is None if the denominator is 0."""
    found = ratio(Proportion(k=45, n=100), Proportion(k=90, n=100))
    assert found is not None
    assert found[0] == 0.5
    assert found[1].low < 0.5 < found[1].high
    assert ratio(Proportion(k=1, n=10), Proportion(k=0, n=10)) is None
