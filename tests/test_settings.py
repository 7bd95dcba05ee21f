"""Settings: one declaration on a task or a kill switch reaches the command line, files, records and cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from analysis.cells import cell_key
from analysis.record_reader import read_record
from harness.cli import trial as trial_command
from harness.cli.app import application
from harness.errors import UsageError
from harness.experiments.experiment import Experiment
from harness.experiments.file import read_experiment
from harness.experiments.job import request_for
from harness.resources.data import ROOT
from harness.runs import same_run
from harness.runs.request import RunRequest, _resumable, check_request, stored_request
from harness.store.records import RunSpec, TrialRecord
from harness.store.store import Store, StoredRun
from harness.tasks import registry
from harness.tasks.declared_settings import all_settings
from harness.tasks.math import MATH
from harness.tasks.setting import Setting
from harness.tasks.task import Mechanism, TaskOptions, TaskProgress
from tests.builders import a_mechanism, run_spec, trial_record, versions

EDIT = f"script:{ROOT / 'tasks' / 'playbooks' / 'edit.yaml'}"
HINTS = Setting(name="hints", type="int", help="Hints that the agent gets.", minimum=0, default=2)
DELAY = Setting(name="delay_s", type="float", help="Seconds that the switch waits.", minimum=0, default=1)
SLOW = "root-run"  # the kill switch that declares DELAY in these tests
COMMAND = "/usr/local/sbin/shutdown.sh --after {delay_s}"
case = pytest.param


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Declare HINTS on the math task; return the values of it that trials begin with."""
    values: list[Any] = []

    def begin(options: TaskOptions, mechanism: Mechanism) -> TaskProgress:
        values.append(options.value(HINTS))
        return MATH.begin(options, mechanism)

    declare(monkeypatch, HINTS, begin=begin)
    return values


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare DELAY on a kill switch whose command uses it."""
    shipped = registry.mechanism_named(SLOW)
    declared = Mechanism.model_validate({**shipped.model_dump(), "run": COMMAND, "settings": [DELAY.model_dump()]})
    found = registry._mechanism
    monkeypatch.setattr(registry, "_mechanism", lambda name: declared if name == SLOW else found(name))


def declare(monkeypatch: pytest.MonkeyPatch, *settings: Setting, **other: Any) -> None:
    """Add settings to those of the math task."""
    monkeypatch.setitem(registry.TASKS, "math", replace(MATH, settings=(*MATH.settings, *settings), **other))


def checked(**other: Any) -> RunSpec:
    """Return the run that a request is checked to."""
    return check_request(RunRequest(**{"model": EDIT, **other}))[0]


def told(monkeypatch: pytest.MonkeyPatch, *words: str) -> RunRequest:
    """Return the request that the command line makes of these arguments of ``trial``."""
    requests: list[RunRequest] = []

    def receive(request: RunRequest) -> None:
        requests.append(request)
        raise UsageError("Seen.")

    monkeypatch.setattr(trial_command, "run_request", receive)
    done = CliRunner().invoke(application(["trial"]), ["trial", *words])
    assert requests, done.output
    return requests[0]


def help_of_trial() -> str:
    """Return the help of ``trial`` on one line."""
    return " ".join(CliRunner().invoke(application(["trial"]), ["trial", "--help"]).output.split())


def experiment(folder: Path, text: str) -> Experiment:
    """Read an experiment with this text."""
    file = folder / "e.yaml"
    file.write_text(text, encoding="utf-8")
    return read_experiment(file)


def variant(run: RunSpec) -> str:
    """Return how the cell of a run's trials names its settings, once the run was stored and read again."""
    stored = RunSpec.model_validate_json(run.model_dump_json())
    return cell_key(stored, read_record(trial_record().model_dump_json())).variant


# ---- a task's setting ----


def test_a_task_setting_is_on_the_command_line(begun: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that a task declares is in the help of trial with its default, and its value reaches the request."""
    assert "Hints that the agent gets (task math). [default: 2]" in help_of_trial()
    assert told(monkeypatch, "--hints", "0", "--seed", "0").settings == {"hints": 0, "seed": 0}
    assert told(monkeypatch).settings == {}


def test_a_task_setting_is_recorded_and_reaches_the_task(begun: list[Any]) -> None:
    """A run records a task's setting beside the other options, given or by default, and the task is begun with it."""
    for settings, value in (({"hints": 5}, 5), ({}, 2)):
        run = checked(settings=settings)
        record = trial_record(options=run.options)
        assert json.loads(run.model_dump_json())["options"]["hints"] == value
        assert TrialRecord.model_validate_json(record.model_dump_json()) == record
        assert begun.pop() == value


def test_a_task_setting_is_a_key_of_experiment_files(begun: list[Any], tmp_path: Path) -> None:
    """A setting that a task declares is a key of experiment files, and the cell's run is made with it."""
    read = experiment(tmp_path, "experiment: x\nhints: 7\nannounced: false\nmodels: [demo]\n")
    run, _ = check_request(request_for(read, read.cells[0], tmp_path, 1))
    assert (run.options.value(HINTS), run.options.announced) == (7, False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        case("hints: many", ":2: 'hints' must be a whole number, so write one.", id="type"),
        case("hints: -1", ":2: 'hints' must be 0 or more, so change it.", id="minimum"),
        case("hint: 1", ":2: 'hint' isn't a known experiment key, so use 'hints'.", id="nearest"),
        case("questions: 0", ":2: 'questions' must be 1 or more, so change it.", id="an old setting"),
        case("announced: 1", ":2: 'announced' must be true or false, so write one of the two.", id="flag"),
    ],
)
def test_a_wrong_setting_in_a_file_is_refused(begun: list[Any], tmp_path: Path, line: str, says: str) -> None:
    """A setting of the wrong type or below its minimum, and a misspelt one, are refused with file and line."""
    with pytest.raises(UsageError) as caught:
        experiment(tmp_path, f"experiment: x\n{line}\nmodels: [demo]\n")
    assert str(caught.value).endswith(says)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        case({"hints": 3}, "hints=3", id="another value"),
        case({"hints": 2}, "", id="the default, given"),
        case({}, "", id="the default"),
        case({"seed": 4, "questions": 8, "notice_after": 2, "announced": False, "hints": 0},
             "8 questions, notice after 2, unannounced, hints=0", id="with the others"),
    ],
)  # fmt: skip
def test_a_task_setting_makes_a_cell(begun: list[Any], settings: dict[str, Any], named: str) -> None:
    """A setting that differs from its default makes another cell of the analysis, which names it."""
    assert variant(checked(settings=settings)) == named


def test_a_cell_names_settings_of_a_task_that_is_not_there() -> None:
    """A stored run of a task that isn't installed has a cell that names each of its settings with its value."""
    options = TaskOptions.model_validate({"seed": 3, "hints": 2, "ratio": 2.0, "loud": False, "after_submit": True})
    assert variant(run_spec(task="gone", options=options)) == "seed=3, hints=2, ratio=2, loud=false"


# ---- a kill switch's setting ----


@pytest.mark.usefixtures("slow")
def test_a_mechanism_setting_is_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that a kill switch declares is in the help of trial, and its value reaches the request."""
    assert "Seconds that the switch waits (mechanism root-run). [default: 1]" in help_of_trial()
    assert told(monkeypatch, "--delay-s", "2.5").settings == {"delay_s": 2.5}


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(("settings", "value", "named"), [({"delay_s": 3}, "3", "delay_s=3"), ({}, "1", "")])
def test_a_mechanism_setting_is_recorded(settings: dict[str, Any], value: str, named: str) -> None:
    """A kill switch's setting is put into its command, recorded with the run, and named by the cell."""
    run = checked(mechanism=SLOW, settings=settings)
    stored = json.loads(run.model_dump_json())
    assert stored["mechanism"]["run"] == f"/usr/local/sbin/shutdown.sh --after {value}"
    assert stored["options"]["delay_s"] == float(value)
    assert variant(run) == named


@pytest.mark.usefixtures("slow")
def test_a_mechanism_setting_reaches_the_cells_with_that_mechanism(tmp_path: Path) -> None:
    """In a grid of kill switches, a setting reaches the cells that have it and leaves the other cells' ids alone."""
    grid = f"experiment: x\nmodels: [demo]\nmechanisms: [published, {SLOW}]\n"
    plain, read = (experiment(tmp_path, text) for text in (grid, f"{grid}delay_s: 2\n"))
    runs = [check_request(request_for(read, cell, tmp_path, 1))[0] for cell in read.cells]
    assert [run.options.value(DELAY) for run in runs] == [1, 2]
    assert [run.options.settings.get("delay_s") for run in runs] == [None, 2]
    same = [plain.run_id(cell) == read.run_id(other) for cell, other in zip(plain.cells, read.cells, strict=True)]
    assert same == [True, False]


@pytest.mark.usefixtures("slow")
def test_a_mechanism_setting_that_no_cell_has_is_refused(tmp_path: Path) -> None:
    """A kill switch's setting in an experiment without that kill switch is refused with file and line."""
    with pytest.raises(UsageError, match=r"e\.yaml:2: no cell has a mechanism with the setting 'delay_s'"):
        experiment(tmp_path, "experiment: x\ndelay_s: 2\nmodels: [demo]\n")


def test_a_value_in_a_command_is_quoted() -> None:
    """A text is quoted for the shell where it is put into a command, so that it can't become a command of its own."""
    word = Setting(name="word", type="str", help="A word.", default="x")
    filled = a_mechanism(run="stop {word}", settings=(word,)).filled({"word": "a; reboot"})
    assert filled.run == "stop 'a; reboot'"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        case(DELAY, "needs a place, {delay_s}, in run or start", id="no place"),
        case(Setting(name="x", type="int", help="An x."), "'x' needs a default", id="no default"),
    ],
)
def test_a_mechanism_setting_needs_a_place_and_a_default(setting: Setting, says: str) -> None:
    """A kill switch whose commands don't use its setting, or whose setting has no default, is refused."""
    with pytest.raises(ValidationError, match=says):
        a_mechanism(settings=(setting,))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        case(
            {"model": "agent:x", "agent": "true", "task": "patrol", "settings": {"seed": 1}},
            "--seed won't do: task 'patrol' with mechanism 'patrol' has --questions, --notice-after.",
            id="a setting of another task",
        ),
        case(
            {"agent": "true", "task": "patrol", "settings": {"announced": False}},
            "--unannounced won't do: task 'patrol' with mechanism 'patrol' has --questions, --notice-after.",
            id="a flag of another task",
        ),
        case(
            {"settings": {"delay_s": 2.0}},
            "--delay-s won't do: task 'math' with mechanism 'published' has --seed, --questions, --notice-after, "
            "--unannounced.",
            id="a setting of another kill switch",
        ),
        case({"settings": {"questions": 0}}, "--questions 0 won't do: it must be 1 or more.", id="too small"),
        case({"settings": {"seed": "x"}}, "--seed x won't do: it must be a whole number.", id="type"),
        case({"settings": {"seed": True}}, "--seed True won't do: it must be a whole number.", id="bool for a number"),
        case(
            {"mechanism": SLOW, "settings": {"delay_s": float("nan")}},
            "--delay-s nan won't do: it must be a number.",
            id="not a number",
        ),
    ],
)
@pytest.mark.usefixtures("slow")
def test_a_setting_that_does_not_fit_is_refused(request_: dict[str, Any], says: str) -> None:
    """A setting that the task and the kill switch don't have, or an invalid value, is refused in one sentence."""
    with pytest.raises(UsageError) as caught:
        checked(**request_)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "setting",
    [
        Setting(name="model", type="str", help="A name that trial has."),
        Setting(name="preflight", type="bool", default=True, help="An option that trial has: --no-preflight."),
        Setting(name="log_level", type="str", help="An option that every command has."),
        Setting(name="after_submit", type="bool", default=False, help="An option that the lab itself sets."),
    ],
    ids=lambda setting: setting.name,
)
def test_a_setting_may_not_take_a_name_of_the_lab(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    """A setting with the name or option of something else on the command line is refused in one sentence."""
    declare(monkeypatch, setting)
    with pytest.raises(UsageError, match=f"^'math' can't have the setting '{setting.name}', because "):
        application(["trial"])


@pytest.mark.parametrize(
    "setting",
    [Setting(name="questions", type="float", help="x"), Setting(name="delay_s", type="float", help="x", default=1)],
    ids=["another type in another task", "the same in a mechanism"],
)
@pytest.mark.usefixtures("slow")
def test_settings_of_one_name_must_agree(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    """Two tasks may share a setting of one type. Another type, or sharing with a kill switch, is refused."""
    assert list(all_settings()["questions"].declarations) == ["math", "patrol"]
    patrol = registry.TASKS["patrol"]
    own = tuple(each for each in patrol.settings if each.name != setting.name)
    monkeypatch.setitem(registry.TASKS, "patrol", replace(patrol, settings=(*own, setting)))
    with pytest.raises(UsageError, match=f"have different settings with the name '{setting.name}'"):
        all_settings()


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "bool"},
        {"type": "int", "default": 1.5},
        {"type": "int", "default": 1, "minimum": 2},
        {"type": "int", "name": "Two words"},
        {"type": "int", "name": "class"},
        {"type": "date"},
    ],
    ids=str,
)
def test_a_contradictory_declaration_is_refused(fields: dict[str, Any]) -> None:
    """A declaration with a bad name, an unknown type or a default that doesn't fit its type is refused."""
    with pytest.raises(ValidationError):
        Setting(**{"name": "x", "help": "An x.", **fields})


# ---- what was stored before ----


def kept(folder: Path, request: RunRequest, asked: dict[str, Any] | None = None) -> RunSpec:
    """Store the run of a request, with ``asked`` in place of what is stored of the request."""
    plan, player = check_request(request)
    with Store(folder) as store:
        store.add_run(plan, {"name": plan.image}, versions(), asked or _resumable(request, plan, player))
    return plan


def as_stored(run: RunSpec) -> StoredRun:
    """Return a run as it is read from the store."""
    spec = RunSpec.model_validate_json(run.model_dump_json())
    return StoredRun(spec=spec, created_at="", image={"name": run.image}, versions=versions())


@pytest.mark.usefixtures("slow")
def test_settings_are_restored_on_resume(begun: list[Any], tmp_path: Path) -> None:
    """A run that is resumed has the settings of its task and kill switch that it was begun with."""
    settings = {"hints": 4, "delay_s": 2.0, "announced": False}
    run = kept(tmp_path, RunRequest(model=EDIT, run_id="monday", mechanism=SLOW, settings=settings))
    request = stored_request(tmp_path, "monday")
    assert request.settings == settings
    assert check_request(request)[0] == run


@pytest.mark.parametrize(
    ("old", "settings"),
    [
        ({"seed": 7, "questions": 8, "notice_after": None, "announced": False},
         {"seed": 7, "questions": 8, "announced": False}),
        ({"seed": None, "questions": None, "notice_after": None, "announced": True}, {}),
    ],
)  # fmt: skip
def test_a_request_of_0_2_is_resumed(tmp_path: Path, old: dict[str, Any], settings: dict[str, Any]) -> None:
    """A request that version 0.2 stored, with a field for each option, is resumed with these settings."""
    request = RunRequest(model=EDIT, run_id="monday", settings=settings)
    plan, player = check_request(request)
    stored = _resumable(request, plan, player)
    del stored["settings"]
    run = kept(tmp_path, request, {**stored, **old})
    assert stored_request(tmp_path, "monday").settings == settings
    assert check_request(stored_request(tmp_path, "monday"))[0] == run


def test_a_run_from_before_a_setting_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stored before a setting was declared can go on with the setting's default, and with no other."""
    before = checked(run_id="monday")
    declare(monkeypatch, HINTS)
    assert same_run.difference(as_stored(before), checked(run_id="monday")) is None
    other = checked(run_id="monday", settings={"hints": 3})
    assert same_run.difference(as_stored(before), other) == "options.hints is 2 there and 3 here"


def test_options_without_new_settings_have_the_json_of_0_2() -> None:
    """The options of a run without new settings are stored under the names that version 0.2 stored."""
    assert json.loads(checked(settings={"seed": 3}).options.model_dump_json()) == {
        "seed": 3,
        "questions": None,
        "notice_after": None,
        "announced": True,
        "press_after_call": None,
        "after_submit": False,
    }
    assert "settings" not in checked().mechanism.model_dump()


@pytest.mark.parametrize(
    ("text", "run_id"),
    [
        ("models: [demo]\n", "small-demo-90c3161a"),
        (
            "n: 2\nseed: 1\nquestions: 8\nnotice_after: 4\nmessage_limit: 90\nask_after: true\nmodels: [o3]\n"
            "conditions: [A]\n",
            "small-o3-a-97edc2c9",
        ),
    ],
)
def test_run_ids_of_experiments_are_those_of_0_2(begun: list[Any], tmp_path: Path, text: str, run_id: str) -> None:
    """A cell's run has the id that version 0.2 gave it, and another id only where the file gives a new setting."""
    read = experiment(tmp_path, f"experiment: small\n{text}")
    other = experiment(tmp_path, f"experiment: small\n{text}hints: 2\n")
    assert read.run_id(read.cells[0]) == run_id
    assert other.run_id(other.cells[0]) != run_id
