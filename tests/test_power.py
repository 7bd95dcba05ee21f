"""Tests of the number of trials that a comparison needs, checked against exact and simulated power."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from analysis.compare import equivalent
from analysis.power import power_of_equivalence, trials_for_difference, trials_for_equivalence
from analysis.rates import Proportion
from harness.cli.power import power
from harness.errors import UsageError
from tests.builders import law
from tests.conftest import Cli

rates = st.floats(0.02, 0.98)


def exact_power_of_z_test(p1: float, p2: float, n: int) -> float:
    """Compute the exact power of a pooled two-sided z-test at 5 %, summed over every pair of counts."""
    k = np.arange(n + 1)
    one, two = k[:, None] / n, k[None, :] / n
    pooled = (one + two) / 2
    spread = np.sqrt(2 * pooled * (1 - pooled) / n)
    found = np.abs(one - two) > norm.isf(0.025) * spread
    return float((binom.pmf(k, n, p1)[:, None] * binom.pmf(k, n, p2)[None, :] * found).sum())


@pytest.mark.parametrize(("p1", "p2"), [(0.5, 0.3), (0.926, 0.85), (0.79, 0.6), (0.2, 0.05)])
def test_that_many_trials_find_a_difference_as_often_as_promised(p1: float, p2: float) -> None:
    """With the computed number of trials, the exact power of a z-test is the requested power."""
    n = trials_for_difference(p1, p2, power=0.8)
    assert exact_power_of_z_test(p1, p2, n) == pytest.approx(0.8, abs=0.03)


def test_a_known_number_of_trials() -> None:
    """Rates of 0.5 and 0.3 need 93 trials each: Cohen's h is 0.4115, and 2 * (2.8016 / h)^2 rounds up to 93."""
    assert trials_for_difference(0.5, 0.3) == 93


@pytest.mark.parametrize(("p1", "p2", "margin"), [(0.9, 0.9, 0.05), (0.5, 0.5, 0.1), (0.5, 0.53, 0.1)])
def test_that_many_trials_show_equivalence_as_often_as_promised(p1: float, p2: float, margin: float) -> None:
    """With the computed number of trials, the share of simulations found equivalent is the requested power."""
    n = trials_for_equivalence(p1, p2, margin=margin, power=0.8)
    generator = np.random.default_rng(7)
    one, two = generator.binomial(n, p1, 20_000) / n, generator.binomial(n, p2, 20_000) / n
    spread = np.sqrt((one * (1 - one) + two * (1 - two)) / n)
    found = np.abs(one - two) + norm.isf(0.05) * spread < margin
    assert found.mean() == pytest.approx(0.8, abs=0.02)


@law
@given(rates, rates, st.floats(0.01, 0.3))
def test_the_fewest_trials_that_do_are_named(p1: float, p2: float, gap: float) -> None:
    """The computed number of trials is the smallest that reaches the power, whichever rate comes first.

    It may be larger if fewer than five successes or failures are expected on one side.
    """
    margin = min(abs(p1 - p2) + gap, 0.99)
    n = trials_for_equivalence(p1, p2, margin=margin)
    assert n == trials_for_equivalence(p2, p1, margin=margin)
    assert power_of_equivalence(p1, p2, n, margin=margin) >= 0.8
    few = min(p1, 1 - p1, p2, 1 - p2) * (n - 1) < 5
    assert n == 1 or few or power_of_equivalence(p1, p2, n - 1, margin=margin) < 0.8


def test_what_no_trials_could_show_is_refused() -> None:
    """Equal rates can't differ, and rates further apart than the margin can't be equivalent: both raise an error."""
    with pytest.raises(UsageError, match="do not differ"):
        trials_for_difference(0.5, 0.5)
    with pytest.raises(UsageError, match="differ by the margin"):
        trials_for_equivalence(0.5, 0.6, margin=0.1)


@pytest.mark.parametrize(("p1", "p2"), [(0, 1), (0, 0.99), (1, 0.0)])
def test_rates_far_apart_need_few_trials(p1: float, p2: float) -> None:
    """Rates that are far apart need between 2 and 5 trials."""
    assert 2 <= trials_for_difference(p1, p2) <= 5


@pytest.mark.parametrize(("p1", "p2"), [(0.0, 0.0), (0.001, 0.001), (1.0, 1.0), (0.0, 0.01)])
def test_near_the_ends_a_comparison_would_agree(p1: float, p2: float) -> None:
    """With the computed number of trials, the expected counts are found equivalent, also for rates near 0 or 1."""
    n = trials_for_equivalence(p1, p2, margin=0.05)
    assert equivalent(Proportion(k=round(n * p1), n=n), Proportion(k=round(n * p2), n=n), 0.05)


def test_the_command_says_it_in_a_sentence_and_in_json(harness_cli: Cli) -> None:
    """The power command prints the number of trials in a sentence."""
    output = harness_cli("power", "--p1", "0.5", "--p2", "0.3").stdout
    assert re.match(r"93 trials of each find that rates of 50% and 30% differ, with a power of 0\.8", output)


def test_the_command_says_it_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json, the power command prints the number of trials together with the options."""
    power(0.9, 0.9, margin=0.05, as_json_=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"n": 617, "p1": 0.9, "p2": 0.9, "margin": 0.05, "power": 0.8, "alpha": 0.05}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"p1": 1.5}, "--p1 1.5 won't do"),
        ({"p2": math.nan}, "--p2 nan won't do"),
        ({"power_": 1}, "--power 1 won't do"),
        ({"margin": 0}, "--margin 0 won't do"),
        ({"alpha": 0}, "--alpha 0 won't do"),
        ({"power_": 0.04}, "it must be above --alpha"),
        ({"p2": 0.50000001}, "so close together"),
    ],
)
def test_what_is_no_rate_is_refused(options: dict[str, float], says: str) -> None:
    """An option outside its valid range raises an error that names the option."""
    with pytest.raises(UsageError, match=says):
        power(**{"p1": 0.5, "p2": 0.4, **options})  # type: ignore[arg-type] # all options are numbers
