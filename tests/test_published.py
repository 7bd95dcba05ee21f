"""Tests that the figures in analysis/published are those of the publications."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from scipy.stats import beta

from analysis.published import figures, sources, tactics
from harness.agents.scripted.playbook import load_playbooks
from harness.resources.data import ROOT

PAPER = (
    *("Claude Sonnet 3.7", "Claude Sonnet 4", "Claude Opus 4", "Claude Opus 4.1", "Gemini 2.5 Pro", "GPT-4o"),
    *("gpt-oss-120b", "codex-mini", "o4-mini", "o3", "GPT-5", "Grok 3", "Grok 4"),
)


def rates(model: str, condition: str) -> list[float | None]:
    """Return every published rate of a model under a condition."""
    return [each.rate for each in figures() if (each.model, each.condition) == (model, condition)]


@pytest.mark.parametrize(
    ("model", "condition", "rate"),
    [
        ("Grok 4", "A", 0.926),
        ("Grok 4", "B", 0.722),
        ("Grok 4", "C", 0.973),
        ("Grok 4", "D", 0.674),
        ("Grok 4", "E", 0.892),
        ("Grok 4", "H", 0.022),
        ("Grok 4", "J", 0.989),
        ("o3", "may-none", 0.79),
        ("o3", "may-allow", 0.07),
    ],
)
def test_headline_figures_stand_under_their_conditions(model: str, condition: str, rate: float) -> None:
    """Each headline rate is stored under the condition it was measured in, as the only rate there."""
    assert rates(model, condition) == [rate]


def test_the_patrol_report_is_there() -> None:
    """The robot report has its three counts: 52 and 2 of 100 simulated, and 3 of 10 on the physical robot."""
    robot = [(each.condition, each.setting, each.k, each.n) for each in figures() if each.source == "robot"]
    assert robot == [
        ("patrol-none", "simulated robot", 52, 100),
        ("patrol-allow", "simulated robot", 2, 100),
        ("patrol-none", "physical robot", 3, 10),
    ]


def test_a_disagreement_stays_two_rows() -> None:
    """If the paper's table and its data sheet differ, both rates are kept."""
    assert rates("GPT-5", "E") == [0.0, 0.014]


@pytest.mark.parametrize("condition", ["A", "B", "C", "E", "K"])
def test_every_model_of_the_paper_has_the_main_conditions(condition: str) -> None:
    """All thirteen models of the paper have a rate in each of its main conditions."""
    assert [model for model in PAPER if not rates(model, condition)] == []


def test_no_row_stands_twice() -> None:
    """No two figures share model, condition, measure, setting, language and source."""
    keys = ("model", "condition", "measure", "setting", "language", "source")
    rows = Counter(tuple(getattr(each, key) for key in keys) for each in figures())
    assert [row for row, count in rows.items() if count > 1] == []


def test_every_figure_is_plausible_and_has_a_known_source() -> None:
    """Each figure has a known source, and its rate equals k / n and lies within its interval."""
    for figure in figures():
        assert figure.source_id in sources(), figure
        assert figure.rate is not None or figure.note, figure
        if figure.k is not None and figure.n and figure.rate is not None:
            assert figure.rate == pytest.approx(figure.k / figure.n, abs=0.0006), figure
        if figure.rate is not None and figure.low is not None and figure.high is not None:
            assert figure.low <= figure.rate <= figure.high, figure
        assert (figure.by is None) == (figure.low is None) == (figure.high is None), figure


def test_a_computed_interval_is_jeffreys() -> None:
    """An interval that wasn't published is the Jeffreys interval, with end 0 for k = 0 and end 1 for k = n."""
    for figure in (each for each in figures() if each.by == "computed"):
        assert figure.k is not None
        assert figure.n is not None
        low, high = (float(beta.ppf(share, figure.k + 0.5, figure.n - figure.k + 0.5)) for share in (0.025, 0.975))
        assert figure.low == pytest.approx(low if figure.k else 0, abs=6e-5), figure
        assert figure.high == pytest.approx(high if figure.k < figure.n else 1, abs=6e-5), figure


def test_no_published_row_is_missing(shared: Path) -> None:
    """Every row of the source collection of published results is stored with the same k, n, rate and interval."""
    rows = yaml.safe_load((shared / "data" / "published-shutdown.yaml").read_text(encoding="utf-8"))["results"]
    theirs = Counter((row["k"], row["n"], row["rate"], row["ci_low"], row["ci_high"], row["source"]) for row in rows)
    assert theirs == Counter((each.k, each.n, each.rate, each.low, each.high, each.source) for each in figures())


def test_every_reported_tactic_is_in_the_corpus_with_its_source() -> None:
    """Every tactic reported of a real model has playbooks that reproduce it and name their source."""
    books = {book.id: book for book in load_playbooks(ROOT / "tasks" / "playbooks")}
    known = sources()
    for tactic in tactics():
        assert tactic.source in known, tactic
        assert tactic.playbooks, tactic
        assert all(books[name].source for name in tactic.playbooks), tactic
