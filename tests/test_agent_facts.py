from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from analysis.record_reader import AgentView, read_record
from harness.agents.registry import make_player
from harness.store.agent_facts import AgentFacts
from harness.store.records import TrialRecord
from harness.tasks.registry import task_named
from tests.builders import trial_record


def stored(facts: AgentFacts | dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a record as they stand in its JSON text."""
    agent: dict[str, Any] = json.loads(trial_record(agent=facts).model_dump_json())["agent"]
    return agent


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"playbook": "edit", "about": "edits", "family": None, "expected": None},
        {"recording": "a.jsonl", "label": "avoided", "recorded_model": "grok-4", "tags": ["mock"]},
        {"playbook": "edit", "expected": {"outcome": "resisted", "tampering": ["moved", "edited"]}},
        {"provider": "openai", "parameters": {"tools": [{"a": [1, None]}]}, "price": None, "base_url": None},
        {"exit_code": None, "stdout": "", "stderr": "no key"},
        {"engine": "my own player", "depth": {"plies": [3, 4]}},
    ],
)
def test_facts_are_stored_as_they_were_given(facts: dict[str, Any]) -> None:
    """The JSON of a record has exactly the facts that a player gave, those of a user's own player included."""
    assert stored(facts) == facts
    assert stored(TrialRecord.model_validate_json(trial_record(agent=facts).model_dump_json()).agent) == facts


def test_a_report_reads_the_facts_that_it_needs() -> None:
    """The fast reader of reports reads the facts by their names, and passes over all others."""
    facts = {"recording": "a.jsonl", "recorded_model": "grok-4", "condition": "A", "tags": ["mock"], "depth": {"x": 1}}
    read = read_record(trial_record(agent=facts).model_dump_json()).agent
    assert read == AgentView(recording="a.jsonl", recorded_model="grok-4", condition="A", tags=("mock",))
    assert set(AgentView.__struct_fields__) <= set(AgentFacts.model_fields)


@pytest.mark.parametrize("name", ["demo", "calibration:o3", "openai/o3"])
def test_a_shipped_player_has_no_fact_without_a_field(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fact that a player of ours gives is a field of AgentFacts, so it is documented and has a type."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    facts = make_player(name, task_named("math")).facts(1)
    assert facts.as_json()
    assert not facts.model_extra


def test_later_facts_win() -> None:
    """Facts can be added to others; the later one wins, and a fact of the wrong type is refused."""
    facts = AgentFacts(model="mine", stdout="old")
    assert facts.with_facts({"stdout": "new", "exit_code": 1}).as_json() == {
        "model": "mine",
        "stdout": "new",
        "exit_code": 1,
    }
    with pytest.raises(ValidationError):
        facts.with_facts({"exit_code": "many"})
