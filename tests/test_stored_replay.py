"""Tests of replaying stored runs: which settings are taken over, which can be changed, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.agents.providers.options import ModelOptions
from harness.agents.scripted.stored_replay import stored_replay
from harness.errors import UsageError
from harness.judging.evidence import StopReason
from harness.judging.verdict import Outcome, TamperingKind
from harness.runs.request import RunRequest, check_request
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import Store
from harness.store.summary import summarise
from harness.store.transcript import Entry
from harness.tasks.conditions import condition_for
from harness.tasks.registry import mechanism_for
from harness.tasks.task import TaskOptions
from tests.builders import a_verdict, an_evidence, run_spec, shell, submit, trial_record, versions

OPTIONS = TaskOptions(seed=7, questions=8, notice_after=4, announced=False)
TRANSCRIPT = (
    Entry(role="system", text="You are a helpful assistant."),
    Entry(role="user", text="Answer."),
    Entry(role="assistant", text="I look.", thinking="hm", calls=(shell("ls", "a"), shell("pwd", "b"))),
    Entry(role="tool", call_id="a", text="x"),
    Entry(role="tool", call_id="b", text="y"),
    Entry(role="assistant", text="Well."),
    Entry(role="user", text="Please proceed."),
    Entry(role="assistant", calls=(submit("2"),)),
    Entry(role="tool", call_id="call-1", text="Submitted."),
)


def the_run(**other: Any) -> RunSpec:
    """Return the spec of a math run with non-default options."""
    usual = {"mechanism": mechanism_for("math", None), "condition": condition_for("math", "B"), "options": OPTIONS}
    return run_spec("monday", **{**usual, "message_limit": 90, **other})


def kept(folder: Path, run: RunSpec, *records: TrialRecord) -> Path:
    """Create a runs directory that contains this run and these trials."""
    with Store(folder) as store:
        store.add_run(run, {"name": "debian"}, versions())
        for record in records:
            store.add_trial(record)
    return folder


def asked(runs: Path, **other: Any) -> RunRequest:
    """Return a request to replay the run, with all other options left open."""
    left = ("n", "task", "condition", "mechanism", "image", "run_id")
    usual: dict[str, Any] = dict.fromkeys(left) | {"concurrency": 4, "message_limit": 60}
    return RunRequest(**{**usual, "model": "replay:monday", "runs_dir": runs, **other})


def a_record(number: int = 1, **other: Any) -> TrialRecord:
    """Return the record of one trial of the run."""
    return trial_record(number, **{"run_id": "monday", "transcript": TRANSCRIPT, "options": OPTIONS, **other})


# ---- the replayed calls ----


def test_every_call_is_made_again() -> None:
    """A replay repeats the agent's turns from the transcript, with text, thinking and parallel calls."""
    replay = stored_replay(the_run(), [a_record()], own_words=True)
    turns = replay.recordings[0].turns
    assert [turn.calls for turn in turns] == [entry.calls for entry in TRANSCRIPT if entry.role == "assistant"]
    assert (turns[0].text, turns[0].thinking, turns[1].text) == ("I look.", "hm", "Well.")
    assert "run monday of" in (replay.simulated or "")


def test_a_refusal_is_a_refusal_again() -> None:
    """A replay of a trial that ended with a refusal ends with a refusal at its last turn."""
    record = a_record(evidence=an_evidence(stop=StopReason.REFUSED), verdict=a_verdict(Outcome.NOT_REACHED))
    (recording,) = stored_replay(the_run(), [record], own_words=True).recordings
    assert [turn.refused for turn in recording.turns] == [False, False, True]


def test_trials_that_ended_in_error_are_left_out() -> None:
    """A replay skips trials that ended in error, and raises an error if no other trial is left."""
    error = a_record(2, evidence=None)
    replay = stored_replay(the_run(), [a_record(1), error, a_record(3)], own_words=True)
    assert [each.file for each in replay.recordings] == ["monday trial 1", "monday trial 3"]
    assert (replay.default_n, replay.most_trials) == (2, 2)
    with pytest.raises(UsageError, match="'monday' has no judged trial"):
        stored_replay(the_run(), [error], own_words=True)


def test_verdicts_are_compared_with_the_stored_ones() -> None:
    """A replayed trial agrees with the stored one if outcome and kinds of tampering are equal, in any order."""
    record = a_record(verdict=a_verdict(Outcome.RESISTED, TamperingKind.EDITED, TamperingKind.MOVED))
    facts = stored_replay(the_run(), [record], own_words=True).facts(1)
    verdicts = [
        a_verdict(Outcome.RESISTED, TamperingKind.MOVED, TamperingKind.EDITED),
        a_verdict(Outcome.RESISTED, TamperingKind.EDITED),
        a_verdict(),
    ]
    again = [trial_record(number, agent=facts, verdict=verdict) for number, verdict in enumerate(verdicts, 1)]
    agreement = summarise(again).agreement
    assert [item.agrees for item in agreement] == [True, False, False]
    assert {item.name for item in agreement} == {"monday trial 1"}


def test_the_button_is_pressed_when_it_was() -> None:
    """Each replayed patrol trial presses the button after the same call as the stored trial."""
    run = the_run(task="patrol", options=TaskOptions())
    records = [a_record(number, options=TaskOptions(press_after_call=number * 2)) for number in (1, 2)]
    replay = stored_replay(run, records, own_words=True)
    assert [replay.options(trial, run.options).press_after_call for trial in (1, 2, 3)] == [2, 4, 2]


# ---- the settings of the replay ----


@pytest.mark.parametrize("name", ["monday", "MONDAY", "last"])
def test_a_run_is_played_as_it_was(tmp_path: Path, name: str) -> None:
    """A replay takes over task, condition, mechanism, options, prompts and number of trials of the stored run."""
    runs = kept(tmp_path, the_run(), a_record(1), a_record(2))
    run, model = check_request(asked(runs, model=f"replay:{name}"))
    original = the_run()
    assert (run.task, run.condition, run.mechanism, run.options) == (
        "math",
        original.condition,
        original.mechanism,
        OPTIONS,
    )
    assert (run.model, run.n, run.message_limit, run.image) == ("replay:monday", 2, 90, "debian")
    assert model.prompts(1) == a_record().prompts


def test_what_the_user_says_goes_first(tmp_path: Path) -> None:
    """Options given by the user override those of the stored run, and another condition brings its own prompts."""
    runs = kept(tmp_path, the_run(), a_record(1), a_record(2), a_record(3))
    run, model = check_request(asked(runs, condition="A", settings={"seed": 9, "questions": 6, "notice_after": 2}, n=2))
    assert (run.condition.name, run.n) == ("A", 2)
    assert run.options == TaskOptions(seed=9, questions=6, notice_after=2, announced=False)
    assert model.prompts(1) is None


def test_a_recording_counts_once(tmp_path: Path) -> None:
    """Asking for more trials than recordings raises an error, because each recording is one observation."""
    runs = kept(tmp_path, the_run(), a_record(1), a_record(2))
    with pytest.raises(UsageError, match=r"^--n 3 won't do: there are 2 recordings, and each is played once\."):
        check_request(asked(runs, n=3))


def test_it_is_no_run_of_another_task(tmp_path: Path) -> None:
    """A stored run can't be replayed as another task."""
    runs = kept(tmp_path, the_run(), a_record())
    with pytest.raises(UsageError, match="'monday' is of task 'math', not 'patrol'"):
        check_request(asked(runs, task="patrol"))


def test_a_path_goes_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path takes precedence over a run id of the same name, and a name that is neither raises an error."""
    runs = kept(tmp_path / "runs", the_run(), a_record())
    monkeypatch.chdir(tmp_path)
    Path("monday").mkdir()
    with pytest.raises(UsageError, match="monday holds no recording"):
        check_request(asked(runs))
    for where, name in ((runs, "tuesday"), (tmp_path / "none", "monday-2")):
        with pytest.raises(UsageError, match=f"no recording at {name}.*a stored run's id"):
            check_request(asked(where, model=f"replay:{name}"))
    assert not (tmp_path / "none").exists()


def test_options_of_live_models_do_not_fit(tmp_path: Path) -> None:
    """A replay rejects options for live models."""
    runs = kept(tmp_path, the_run(), a_record())
    with pytest.raises(UsageError, match="--max-cost is for live models"):
        check_request(asked(runs, asking=ModelOptions(max_cost=1)))


def test_the_prompts_condition_is_named() -> None:
    """A trial replayed with its stored prompts records which condition these belong to."""
    facts = stored_replay(the_run(), [a_record()], own_words=True).facts(1)
    assert facts.condition == condition_for("math", None).name
    assert stored_replay(the_run(), [a_record()], own_words=False).facts(1).condition is None
