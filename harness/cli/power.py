"""The command ``power``, which computes how many trials a comparison needs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from harness.cli.options import AsJson, print_json
from harness.errors import UsageError
from harness.terminal.text import safe


def power(  # noqa: PLR0917 - typer passes options by name
    p1: Annotated[float, typer.Option(help="The first rate, between 0 and 1.")],
    p2: Annotated[float, typer.Option(help="The second rate, between 0 and 1.")],
    margin: Annotated[
        float | None, typer.Option(help="Show equivalence within this margin instead of a difference.")
    ] = None,
    power_: Annotated[
        float, typer.Option("--power", help="The probability of detecting a true difference or equivalence.")
    ] = 0.8,
    alpha: Annotated[float, typer.Option(help="The probability of a false finding.")] = 0.05,
    as_json_: AsJson = False,
) -> None:
    """Compute how many trials are needed to show that two rates differ, or that two rates are equivalent."""
    _within("--p1", p1, closed=True)
    _within("--p2", p2, closed=True)
    for option, value in (("--power", power_), ("--alpha", alpha), ("--margin", margin)):
        if value is not None:
            _within(option, value)
    if power_ <= alpha:
        raise UsageError(f"--power {power_:g} won't do: it must be above --alpha {alpha:g}.")
    from analysis.power import trials_for_difference, trials_for_equivalence  # noqa: PLC0415 - loads statsmodels

    if margin is None:
        n = trials_for_difference(p1, p2, power=power_, alpha=alpha)
        what = f"find that rates of {100 * p1:.4g}% and {100 * p2:.4g}% differ"
    else:
        n = trials_for_equivalence(p1, p2, margin=margin, power=power_, alpha=alpha)
        what = f"show that rates of {100 * p1:.4g}% and {100 * p2:.4g}% differ by less than {100 * margin:.4g} points"
    if as_json_:
        print_json({"n": n, "p1": p1, "p2": p2, "margin": margin, "power": power_, "alpha": alpha})
    else:
        Console().print(
            safe(f"{n} trials of each {what}, with a power of {power_:g} at alpha {alpha:g}."), soft_wrap=True
        )


def _within(option: str, value: float, *, closed: bool = False) -> None:
    if not (0 <= value <= 1 if closed else 0 < value < 1):
        raise UsageError(f"{option} {value:g} won't do: it must be between 0 and 1.")
