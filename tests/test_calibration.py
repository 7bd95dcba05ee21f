"""Calibration agents: scripted agents that resist at a published rate, reproducible by seed and trial number."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from analysis.published import figures
from harness.agents.scripted.calibration import calibrated_models, calibration, published_rate
from harness.agents.scripted.playbook import load_playbooks
from harness.errors import UsageError
from harness.resources.data import ROOT, read_yaml
from harness.tasks.registry import task_named
from harness.tasks.task import TaskOptions

TRIALS = range(1, 3001)


@pytest.mark.parametrize(("model", "condition"), [("Grok 4", "A"), ("codex-mini", "B"), ("GPT-4o", "K"), ("o3", "E")])
def test_they_resist_as_often_as_was_published(model: str, condition: str) -> None:
    """Over 3000 trials, the agents' share of resistance is consistent with the published rate."""
    agents = calibration(model, "math", condition, seed=5)
    resisted = sum(agents.resists(trial) for trial in TRIALS)
    assert binomtest(resisted, len(TRIALS), agents.rate).pvalue > 0.001


@pytest.mark.parametrize(("model", "rate"), [("Claude Sonnet 4", 0.0), ("o3", 0.945)])
def test_what_they_play_expects_what_was_drawn(model: str, rate: float) -> None:
    """An agent drawn to resist plays a playbook expected to be judged resisted, and no other agent does."""
    agents = calibration(model, "math", "A", seed=1)
    assert agents.rate == rate
    for trial in range(1, 60):
        expected = agents.facts(trial).as_json()["expected"]["outcome"]
        assert (expected == "resisted") is agents.resists(trial)


def test_a_trial_is_the_same_whenever_it_is_played() -> None:
    """The seed and the trial number determine the playbook, and another seed gives other playbooks."""
    one, same, other = (calibration("o4-mini", "math", "K", seed) for seed in (3, 3, 4))
    facts = [[agents.facts(trial).playbook for trial in range(1, 30)] for agents in (one, same, other)]
    assert facts[0] == facts[1] != facts[2]


@pytest.mark.parametrize("task", ["math", "patrol"])
def test_every_playbook_that_may_be_drawn_is_one_of_its_task(task: str) -> None:
    """The calibration mix names only shipped playbooks, each with its group's task and outcome."""
    books = {book.id: book for book in load_playbooks(ROOT / "tasks" / "playbooks")}
    for group, mix in read_yaml(ROOT / "tasks" / "calibration.yaml")[task].items():
        for name, weight in mix.items():
            book = books[name]
            assert book.expect is not None
            assert (book.task, (book.expect.outcome == "resisted") is (group == "resisted")) == (task, True), name
            assert weight > 0


def test_the_patrols_mix_is_that_of_the_published_logs() -> None:
    """The patrol mix uses the tactic counts of the published logs."""
    mix = read_yaml(ROOT / "tasks" / "calibration.yaml")["patrol"]["resisted"]
    assert list(mix.values()) == [34, 8, 7, 3, 2, 1]


def test_they_say_that_no_model_is_there() -> None:
    """Calibration agents are marked as simulated and name the published figure they draw from."""
    agents = calibration("grok 4", "math", "J", seed=0)
    assert agents.name == "calibration:Grok 4"
    assert agents.simulated == (
        "calibration agents drawing from the published rate 98.9% of Grok 4 under J (dataset); no model"
    )
    assert agents.facts(1).as_json()["calibration"]["rate"] == 0.989
    assert agents.options(1, TaskOptions()) == TaskOptions()
    assert task_named("math").name == "math"


def test_there_are_the_papers_models() -> None:
    """Every model in the paper's tables can be calibrated."""
    assert {each.model for each in figures() if each.source_id == "paper_v2"} <= set(calibrated_models())


@pytest.mark.parametrize(
    ("model", "condition", "says"),
    [
        ("Grok 5", "A", "did you mean Grok 4"),
        ("Grok 4", "G", "No rate of resistance is published for 'Grok 4' under 'G': there is A, K, E, B, C, D"),
        ("Gemini 2.5 Pro", "deepmind-original", "No rate of resistance"),
    ],
)
def test_what_was_not_published_is_refused(model: str, condition: str, says: str) -> None:
    """An unknown model, or one without a published rate for the condition, is refused with the alternatives."""
    with pytest.raises(UsageError, match=says):
        published_rate(model, condition)
