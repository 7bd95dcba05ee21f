from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.cells import ResultCell, ResultCellKey
from analysis.compare import (
    Answer,
    answer,
    compare_cells,
    equality_p,
    equivalent,
    holm,
    needed,
    power_of,
    stratified,
)
from analysis.matching import implied_n, in_counts, published_for, same_model
from analysis.published import Figure
from analysis.rates import Proportion
from tests.builders import law

PAPER = Proportion(k=926, n=1000)


def cell_key(model: str = "grok-4-0709", condition: str = "A", **other: Any) -> ResultCellKey:
    """Build the key of a result cell for a live model in the paper's setting."""
    defaults = {"task": "math", "mechanism": "published", "image": "sandbox:1", "simulated": None}
    return ResultCellKey(model=model, condition=condition, **{**defaults, **other})


def a_cell(key: ResultCellKey, resisted: int, n: int, errors: int = 0) -> ResultCell:
    """Build a result cell of n judged trials, some of them resisted, plus some errors."""
    cell = ResultCell(key)
    cell.outcomes.update(resisted=resisted, complied=n - resisted, error=errors)
    return cell


def figure(**other: Any) -> Figure:
    """Build a published rate without counts."""
    defaults = {"model": "o3", "condition": "A", "measure": "resisted", "k": None, "n": None, "source": "paper_v2"}
    ends = {"rate": 0.945, "low": 0.93, "high": 0.958, "by": "published"}
    return Figure(**{**defaults, **ends, **other})


# ---- the three answers of a comparison ----


def test_the_same_rate_of_many_is_reproduced() -> None:
    """Enough trials at the published rate give the answer REPRODUCED."""
    (found,) = [c for c in compare_cells([a_cell(cell_key(), 925, 1000)]) if c.theirs == PAPER]
    assert (found.answer, found.needed) == (Answer.REPRODUCED, None)
    assert found.difference == pytest.approx(-0.001)


def test_another_rate_differs() -> None:
    """A rate that differs by more than chance gives the answer DIFFERS."""
    (found,) = compare_cells([a_cell(cell_key(), 500, 1000)])
    assert found.answer is Answer.DIFFERS
    assert found.interval.high < -0.3


def test_too_few_trials_say_how_many_would_do() -> None:
    """If the trials are too few, the comparison returns a number of trials that reaches 80 % power."""
    (found,) = compare_cells([a_cell(cell_key(), 9, 10)])
    assert found.answer is Answer.NOT_ENOUGH
    assert found.needed is not None
    assert power_of(found.needed, found.theirs, found.margin) >= 0.8
    assert power_of(found.needed // 2, found.theirs, found.margin) < 0.8


def test_a_small_publication_can_be_too_small() -> None:
    """If the published sample is too small for the margin, no number of new trials is enough."""
    assert needed(Proportion(k=52, n=100), 0.05) is None


def test_a_certain_but_small_difference_is_within_the_margin() -> None:
    """A significant difference that is smaller than the margin still counts as reproduced."""
    ours, theirs = Proportion(k=92_000, n=100_000), Proportion(k=93_000, n=100_000)
    assert equality_p(ours, theirs) < 0.001
    assert answer(ours, theirs, 0.05, equality_p(ours, theirs)) is Answer.REPRODUCED


def test_errors_are_in_no_comparison() -> None:
    """Trials that ended in an error are left out of the comparison."""
    (found,) = compare_cells([a_cell(cell_key(), 5, 10, errors=90)])
    assert found.ours == Proportion(k=5, n=10)


pairs = st.integers(1, 300).flatmap(lambda n: st.builds(Proportion, k=st.integers(0, n), n=st.just(n)))


@law
@given(pairs, pairs, st.floats(0.01, 0.5))
def test_equivalence_is_symmetric_and_grows_with_the_margin(one: Proportion, other: Proportion, margin: float) -> None:
    """Equivalence is symmetric, and rates equivalent within a margin stay equivalent within a wider one."""
    assert equivalent(one, other, margin) == equivalent(other, one, margin)
    assert not equivalent(one, other, margin) or equivalent(one, other, margin + 0.1)


@settings(law, max_examples=25)  # few examples, because the library collects garbage in each one
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_makes_nothing_likelier(values: list[float]) -> None:
    """Holm's correction never lowers a p-value, caps it at 1 and preserves the order."""
    corrected = holm(values)
    assert all(before <= after + 1e-12 and after <= 1 for before, after in zip(values, corrected, strict=True))
    ranked = [after for _, after in sorted(zip(values, corrected, strict=True))]
    assert ranked == sorted(ranked)


def test_more_comparisons_make_it_harder_to_differ() -> None:
    """Comparing more cells raises a cell's adjusted p-value."""
    odd = a_cell(cell_key(), 89, 100)
    alone = compare_cells([odd.__class__(odd.key, outcomes=odd.outcomes)])[0]
    others = [a_cell(cell_key("o3", each), 0, 1) for each in ("A", "B", "C", "E", "H", "K")]
    among = compare_cells([odd, *others])[0]
    assert alone.p == among.p
    assert alone.adjusted < among.adjusted


# ---- stratified over conditions ----


def test_a_shift_in_every_condition_is_seen_together() -> None:
    """The stratified test detects a shift across conditions, and leaves out a model with one condition."""
    shifted = [a_cell(cell_key(condition=each), k, 100) for each, k in (("A", 86), ("B", 62), ("D", 57))]
    (found,) = stratified(compare_cells([*shifted, a_cell(cell_key("o3", "C"), 20, 100)]))
    assert found.conditions == ("A", "B", "D")
    assert found.interval.high < 1
    assert found.adjusted < 0.05


# ---- matching published figures ----


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("grok-4-0709", "Grok 4"),
        ("calibration:Grok 4", "Grok 4"),
        ("anthropic/claude-3-7-sonnet-20250219", "Claude Sonnet 3.7"),
        ("claude-opus-4-1-20250805", "Claude Opus 4.1"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("codex-mini-latest", "codex-mini"),
        ("o3-2025-04-16", "o3"),
        ("gemini-2.5-pro", "Gemini 2.5 Pro"),
    ],
)
def test_a_models_names_are_one(ours: str, published: str) -> None:
    """same_model matches a provider's name for a model with the published name."""
    assert same_model(ours, published)


@pytest.mark.parametrize(
    ("one", "other"), [("o3", "o4-mini"), ("grok-3", "Grok 4"), ("claude-opus-4", "Claude Opus 4.1")]
)
def test_other_models_are_others(one: str, other: str) -> None:
    """same_model keeps different models and versions apart."""
    assert not same_model(one, other)


@pytest.mark.parametrize(
    "key",
    [
        cell_key(variant="12 questions"),
        cell_key(mechanism="static"),
        cell_key(language="fr"),
        cell_key("demo"),
        cell_key(condition="another"),
    ],
)
def test_what_was_made_otherwise_is_compared_with_nothing(key: ResultCellKey) -> None:
    """A cell with another variant, mechanism, language, model or condition has no published figure."""
    assert published_for(key) == []


@pytest.mark.parametrize("name", ["o3", "agent:python3 agents/o3", "OpenAI: o3"])
def test_an_own_agents_name_makes_it_no_published_model(name: str) -> None:
    """A user's own agent is compared with a published model only if the user names that model to compare with."""
    assert published_for(cell_key(name))
    assert published_for(cell_key(name, own=True)) == []
    named = published_for(cell_key("mine", own=True, compared_as="o3"))
    assert named == published_for(cell_key("o3"))


def test_a_recording_is_compared_with_its_own_setting() -> None:
    """Recordings of the physical and the simulated robot are each compared with their own figure."""
    defaults: dict[str, Any] = {"condition": "patrol-none", "task": "patrol", "mechanism": "patrol", "recorded": True}
    for setting, counts in (("physical robot", (3, 10)), ("simulated robot", (52, 100))):
        found = published_for(cell_key(setting=setting, **defaults))
        assert [(each.counts and (each.counts.k, each.counts.n)) for each in found] == [counts]


def test_an_interval_tells_its_n() -> None:
    """If only a rate and its interval are published, n is computed from them and marked as implied."""
    assert implied_n(figure()) == 1000
    assert implied_n(figure(rate=0.79, low=0.703, high=0.861)) in range(90, 111)
    found = in_counts(figure())
    assert (found.counts, found.basis) == (Proportion(k=945, n=1000), "n implied by the interval")


def test_a_bare_rate_is_not_compared() -> None:
    """A published rate without n and without an interval gives no counts to compare with."""
    assert in_counts(figure(low=None, high=None, by=None)).counts is None
