"""A run is resumed as what it was: what is kept of its request, what may differ, and what is refused."""

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
from harness.resources import ROOT
from harness.runs.request import RunRequest, _resumable, check_request, stored_request
from harness.runs.same_run import difference, identity, must_be_same
from harness.store.records import RunSpec
from harness.store.store import Store, StoredRun
from tests.builders import a_condition, run_spec, versions

EDIT = ROOT / "tasks" / "playbooks" / "edit.yaml"


def asked(runs: Path, **other: Any) -> RunRequest:
    """A request in which the user left everything open."""
    left = ("model", "n", "task", "condition", "mechanism", "image", "seed", "questions", "notice_after")
    usual: dict[str, Any] = dict.fromkeys(left) | {"concurrency": 4, "announced": True, "message_limit": 60}
    return RunRequest(**{**usual, "runs_dir": runs, "run_id": "monday", **other})


def kept(runs: Path, **other: Any) -> RunSpec:
    """A run of such a request, stored as the main job stores it."""
    request = asked(runs, **other)
    plan, model = check_request(request)
    with Store(runs) as store:
        store.add_run(plan, {"name": plan.image}, versions(), _resumable(request, plan, model))
    return plan


def stored(spec: RunSpec) -> StoredRun:
    """That run as it comes from the store."""
    image = {"name": spec.image}
    return StoredRun(
        spec=RunSpec.model_validate_json(spec.model_dump_json()), created_at="", image=image, versions=versions()
    )


# ---- what is kept ----


def test_a_stored_request_asks_for_the_same_run(tmp_path: Path) -> None:
    """All that the user chose comes back from the store, and gives the spec that was run."""
    options = {"seed": 7, "questions": 8, "notice_after": 4, "announced": False, "message_limit": 90}
    plan = kept(tmp_path, n=3, condition="B", model=f"script:{EDIT}", time_limit_s=50.0, **options)
    request = stored_request(tmp_path, "monday")
    again, _ = check_request(request)
    assert again == plan
    assert (request.run_id, request.runs_dir) == ("monday", tmp_path)


def test_a_run_can_be_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are kept in full: of playbooks, and of what an agent's command names."""
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


def test_how_a_live_model_is_asked_is_kept_and_its_key_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live model's settings come back from the store; its key is taken from the environment anew."""
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
    """Where too little was kept, the refusal says how to go on all the same."""
    with Store(tmp_path) as store:
        store.add_run(run_spec("old"), {}, versions())
    with pytest.raises(UsageError, match="give its options again, with trial --run-id old"):
        stored_request(tmp_path, "old")


# ---- what may differ, and what may not ----


def test_the_same_run_doesnt_differ() -> None:
    """A run is itself, at any speed."""
    run = run_spec(player={"sha256": "1"})
    assert difference(stored(run), run.model_copy(update={"concurrency": 50})) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 5}, "n is 1 there and 5 here"),
        ({"condition": a_condition(name="B")}, 'condition.name is "A" there and "B" here'),
        ({"image": "other"}, "image is 'sandbox:1' there and 'other' here"),
        ({"player": {"sha256": "2"}}, "what plays has changed"),
        ({"model": "other", "player": {"sha256": "2"}}, 'model is "demo" there and "other" here'),
        ({"time_limit_s": 4.5}, "time_limit_s is null there and 4.5 here"),
    ],
)
def test_a_difference_is_named(change: dict[str, Any], says: str) -> None:
    """Another run of the same id is refused in a sentence that says where it differs, and leaves the first alone."""
    run = run_spec(player={"sha256": "1"})
    with pytest.raises(UsageError, match=says.replace(".", r"\.").replace("?", r"\?")) as caught:
        must_be_same(stored(run), run.model_copy(update=change))
    assert "already a run 'a-run'" in str(caught.value)


def test_a_player_may_be_called_by_another_path() -> None:
    """What counts is what plays, not how it is called; of a run that kept no hash, the name."""
    run = run_spec(model="script:a.yaml", player={"sha256": "1"})
    assert difference(stored(run), run.model_copy(update={"model": "script:/x/a.yaml"})) is None
    old = run.model_copy(update={"player": {}})
    assert difference(stored(old), run) is None
    assert difference(stored(old), run.model_copy(update={"model": "script:b.yaml"})) is not None


def test_an_edited_playbook_is_another_player() -> None:
    """A playbook with another step has another identity, and the same one the same."""
    one, same, other = (
        identity(ScriptedModel("s", (Playbook("p", "", (AdvanceStep(until=until),)),)))
        for until in ("done", "done", "notice")
    )
    assert one == same
    assert one != other


def test_an_edited_agent_is_another_player(tmp_path: Path) -> None:
    """The script that an agent's command names is part of who plays."""
    script = tmp_path / "agent.py"
    script.write_text("print(1)")
    before = identity(external_agent(f"python3 {script}", None, 300))
    script.write_text("print(2)")
    assert identity(external_agent(f"python3 {script}", None, 300)) != before
    assert json.loads(json.dumps(before)) == before
