"""Tests of resuming a run: what is stored of its request, which options may change, and what is rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.agents.external import external_agent
from harness.agents.providers.apis.dialect import Sampling
from harness.agents.providers.options import ModelOptions
from harness.agents.scripted.playbook import AdvanceStep, Playbook
from harness.agents.scripted.scripted import ScriptedModel
from harness.errors import UsageError
from harness.resources.data import ROOT
from harness.runs.request import RunRequest, _resumable, check_request, stored_request
from harness.runs.same_run import difference, must_be_same
from harness.store.records import RunSpec
from harness.store.store import Store, StoredRun
from tests.builders import a_condition, run_spec, versions

EDIT = ROOT / "tasks" / "playbooks" / "edit.yaml"


def asked(runs: Path, **other: Any) -> RunRequest:
    """Return a run request with default options."""
    left = ("model", "n", "task", "condition", "mechanism", "image")
    usual: dict[str, Any] = dict.fromkeys(left) | {"concurrency": 4, "message_limit": 60}
    return RunRequest(**{**usual, "runs_dir": runs, "run_id": "monday", **other})


def kept(runs: Path, **other: Any) -> RunSpec:
    """Store a run of such a request, as the run command does; return its spec."""
    request = asked(runs, **other)
    plan, model = check_request(request)
    with Store(runs) as store:
        store.add_run(plan, {"name": plan.image}, versions(), _resumable(request, plan, model))
    return plan


def stored(spec: RunSpec) -> StoredRun:
    """Return a run with this spec in the form that the store returns."""
    image = {"name": spec.image}
    return StoredRun(
        spec=RunSpec.model_validate_json(spec.model_dump_json()), created_at="", image=image, versions=versions()
    )


# ---- what is stored ----


def test_a_stored_request_asks_for_the_same_run(tmp_path: Path) -> None:
    """A stored request has all options that the user chose, and gives the same run spec again."""
    options = {"settings": {"seed": 7, "questions": 8, "notice_after": 4, "announced": False}, "message_limit": 90}
    plan = kept(tmp_path, n=3, condition="B", model=f"script:{EDIT}", time_limit_s=50.0, **options)
    request = stored_request(tmp_path, "monday")
    again, _ = check_request(request)
    assert again == plan
    assert (request.run_id, request.runs_dir) == ("monday", tmp_path)


def test_a_run_can_be_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored request has absolute paths, so a run can be resumed from another working directory."""
    shutil.copy(EDIT, tmp_path / "book.yaml")
    (tmp_path / "agent.py").write_text("")
    monkeypatch.chdir(tmp_path)
    kept(tmp_path / "runs", model="script:book.yaml")
    kept(tmp_path / "runs", agent="python3 agent.py", run_id="tuesday")
    monkeypatch.chdir("/")
    for run_id in ("monday", "tuesday"):
        plan, _ = check_request(stored_request(tmp_path / "runs", run_id))
        with Store(tmp_path / "runs") as store:
            must_be_same(store.run(run_id), plan)


COMMAND = "sh ./agent.py --at=agent.py run"


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"agent": COMMAND, "model": "o3"}, "o3"),
        ({"agent": COMMAND}, None),
        ({"model": f"agent:{COMMAND}"}, None),
    ],
)
def test_an_own_agents_run_is_resumed_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], label: str | None
) -> None:
    """A stored request finds the files of an agent's command where they were, and keeps its label.

    A file of another folder is never taken for a word of the command.
    """
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
        (folder / "agent.py").write_text(folder.name)
    (elsewhere / "run").touch()
    monkeypatch.chdir(here)
    plan = kept(tmp_path, **options)
    monkeypatch.chdir(elsewhere)
    again, _ = check_request(stored_request(tmp_path, "monday"))
    must_be_same(stored(plan), again)
    assert again.player["words"][1:] == [str(here / "agent.py"), f"--at={here / 'agent.py'}", "run"]
    assert (plan.model, again.player["label"]) == (label or f"agent:{COMMAND}", label)


def test_an_agent_that_connects_keeps_its_label(tmp_path: Path) -> None:
    """The run of an agent that connects has the label as its model name, also after its request was stored."""
    plan = kept(tmp_path, agent="wait", model="mine")
    again, _ = check_request(stored_request(tmp_path, "monday"))
    assert plan.model == again.model == "mine"
    must_be_same(stored(plan), again)


@pytest.mark.parametrize(
    ("player", "model"),
    [
        ({"label": "mine", "words": ["sh", "a.sh"]}, "mine"),
        ({"label": "mine", "words": []}, "mine"),
        ({"label": None, "words": ["sh", "a.sh"]}, "agent:sh a.sh"),
        ({"label": "mine"}, "agent:sh a.sh"),
        ({}, "agent:sh a.sh"),
    ],
)
def test_an_older_run_of_an_own_agent_is_named_by_its_label(player: dict[str, Any], model: str) -> None:
    """A stored run of version 0.2, whose model was the agent's command, is read with the agent's label as its model."""
    text = run_spec(model="agent:sh a.sh").model_dump_json()
    old = json.dumps({**json.loads(text), "player": player})
    assert RunSpec.model_validate_json(old).model == model


def test_how_a_live_model_is_asked_is_kept_and_its_key_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live model's settings are stored with the run, but its API key is not."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    asking = ModelOptions(sampling=Sampling(effort="high", max_tokens=900), patience_s=60.0, max_tokens_total=5)
    plan = kept(tmp_path, model="o3", asking=asking, n=2)
    assert b"sk-very-secret" not in (tmp_path / "offswitch.sqlite").read_bytes()
    request = stored_request(tmp_path, "monday", max_tokens_total=500, concurrency=9)
    again, _ = check_request(request)
    assert request.asking == asking.model_copy(update={"max_tokens_total": 500})
    assert again == plan.model_copy(update={"concurrency": 9})
    cooler, _ = check_request(
        asked(tmp_path, model="o3", n=2, asking=ModelOptions(sampling=Sampling(effort="low", max_tokens=900)))
    )
    with Store(tmp_path) as store:
        assert "low" in (difference(store.run("monday"), cooler) or "")


def test_a_run_of_an_older_version_needs_its_options_again(tmp_path: Path) -> None:
    """If a run was stored without its request, resuming it raises an error that explains how to continue."""
    with Store(tmp_path) as store:
        store.add_run(run_spec("old"), {}, versions())
    with pytest.raises(UsageError, match="give its options again, with trial --run-id old"):
        stored_request(tmp_path, "old")


# ---- differences between the stored run and the request ----


def test_the_same_run_doesnt_differ() -> None:
    """Two requests for the same run have no difference, even if their concurrency differs."""
    run = run_spec(player={"sha256": "1"})
    assert difference(stored(run), run.model_copy(update={"concurrency": 50})) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 5}, "n is 1 there and 5 here"),
        ({"condition": a_condition(name="B")}, 'condition.name is "A" there and "B" here'),
        ({"image": "other"}, "image is 'sandbox:1' there and 'other' here"),
        ({"player": {"sha256": "2"}}, "what plays has changed"),
        ({"model": "other", "player": {"sha256": "2"}}, 'model is "demo" there and "other" here'),
        ({"time_limit_s": 4.5}, "time_limit_s is null there and 4.5 here"),
    ],
)
def test_a_difference_is_named(change: dict[str, Any], message: str) -> None:
    """Resuming a run with different options raises an error that names the difference."""
    run = run_spec(player={"sha256": "1"})
    with pytest.raises(UsageError, match=message.replace(".", r"\.").replace("?", r"\?")) as caught:
        must_be_same(stored(run), run.model_copy(update=change))
    assert "already a run 'a-run'" in str(caught.value)


def test_a_player_may_be_called_by_another_path() -> None:
    """Two playbook paths with the same content are the same player; without a stored hash, names are compared."""
    run = run_spec(model="script:a.yaml", player={"sha256": "1"})
    assert difference(stored(run), run.model_copy(update={"model": "script:/x/a.yaml"})) is None
    old = run.model_copy(update={"player": {}})
    assert difference(stored(old), run) is None
    assert difference(stored(old), run.model_copy(update={"model": "script:b.yaml"})) is not None


def test_an_edited_playbook_is_another_player() -> None:
    """Changing a step of a playbook changes the player's identity."""
    one, same, other = (
        ScriptedModel("s", (Playbook("p", "", (AdvanceStep(until=until),)),)).identity()
        for until in ("done", "done", "notice")
    )
    assert one == same
    assert one != other


def test_an_edited_file_of_an_option_is_another_player(tmp_path: Path) -> None:
    """A change to a file that an option of an agent's command names changes the player's identity."""
    (tmp_path / "conf.yaml").write_text("a")
    before = external_agent("sh --config=conf.yaml", None, 300, tmp_path).identity()
    (tmp_path / "conf.yaml").write_text("b")
    assert external_agent("sh --config=conf.yaml", None, 300, tmp_path).identity() != before


def test_an_edited_agent_is_another_player(tmp_path: Path) -> None:
    """Changing a script named in an agent's command changes the agent's identity."""
    script = tmp_path / "agent.py"
    script.write_text("print(1)")
    before = external_agent(f"python3 {script}", None, 300).identity()
    script.write_text("print(2)")
    assert external_agent(f"python3 {script}", None, 300).identity() != before
    assert json.loads(json.dumps(before)) == before
