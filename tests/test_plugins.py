"""Plugins: a user's own task, kill switch, image, conditions and player, outside the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agents.providers import presets
from harness.agents.registry import kind_of
from harness.errors import UsageError
from harness.experiments.file import read_experiment
from harness.resources import plugins
from harness.runs.request import RunRequest, _resumable, check_request, stored_request
from harness.runs.same_run import must_be_same
from harness.store.store import Store
from harness.tasks.conditions import condition_for
from harness.tasks.registry import (
    IMAGE,
    MECHANISM,
    TASK,
    image_folder,
    mechanism_for,
    mechanism_named,
    name_of,
    names,
    task_named,
)
from tests.builders import versions
from tests.conftest import ROOT, Cli

EXAMPLES = ROOT / "docs" / "example_plugins"
PROVIDER = "acme: {api: chat, base_url: 'https://a.test/v1', key: ACME, max_tokens: max_tokens, models: [m-1]}"


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin and end each test without plugins and without further providers."""
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    plugins.use_folders([])
    yield
    plugins.use_folders([])
    plugins._given.clear()
    plugins.forget()
    presets._own.clear()
    presets._files.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the example plugins, so that a test may change them."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "mine"))


# ---- what is found ----


def test_a_plugin_folder_adds_to_what_ships(folder: Path) -> None:
    """The task, kill switch, image, condition and player of a plugin folder are found beside those that ship."""
    before = {kind: set(names(kind)) for kind in (TASK, MECHANISM, IMAGE)}
    plugins.use_folders([folder])
    added = {kind: set(names(kind)) - before[kind] for kind in before}
    assert added == {TASK: {"greenhouse"}, MECHANISM: {"mains-switch"}, IMAGE: {"debian-tagged"}}
    assert task_named("Greenhouse").sources[0][2] == folder / "tasks" / "greenhouse" / "water.c"
    assert image_folder("debian-tagged") == folder / "sandbox_images" / "debian-tagged"
    assert condition_for("greenhouse", None).name == "greenhouse-plain"
    assert kind_of("patient:3")[0].about == "an example that asks N times"


def test_folders_come_from_the_environment_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OFFSWITCH_PLUGINS lists plugin folders, separated as in PATH."""
    monkeypatch.setenv(plugins.VARIABLE, f"{folder}:{folder}")
    plugins.use_folders([])
    assert plugins.folders() == (folder,)
    assert "greenhouse" in names(TASK)


def test_a_task_serves_the_mechanisms_that_it_lists(folder: Path) -> None:
    """The first mechanism that a task lists is its default, and shipped ones that it lists are usable as well."""
    plugins.use_folders([folder])
    assert mechanism_for("greenhouse", None).name == "mains-switch"
    assert mechanism_for("greenhouse", "supervisor").name == "supervisor"
    with pytest.raises(
        UsageError, match="'published' does not serve task 'greenhouse', which has mains-switch, superv"
    ):
        mechanism_for("greenhouse", "published")


def test_a_task_without_conditions_has_one_without_an_instruction(folder: Path) -> None:
    """A task for which no file has a condition is run without an instruction."""
    (folder / "tasks" / "conditions.yaml").unlink()
    plugins.use_folders([folder])
    condition = condition_for("greenhouse", None)
    assert (condition.name, condition.text) == ("greenhouse-none", None)


@pytest.mark.parametrize("file", ["", "mechanism.yaml"])
def test_a_mechanism_can_be_given_by_path(folder: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a folder, or of the file in it, stands for the mechanism, and a path may be relative."""
    monkeypatch.chdir(folder)
    path = Path("shutdown_scripts/mains-switch") / file
    assert mechanism_named(str(path)).name == "mains-switch"
    assert plugins.path_given(MECHANISM, "mains-switch") == folder / "shutdown_scripts" / "mains-switch"
    assert name_of(TASK, "tasks/greenhouse") == "greenhouse"


# ---- what a run records ----


def asked(runs: Path, **options: object) -> RunRequest:
    """Build a request for the example task."""
    return RunRequest(runs_dir=runs, **{"model": "patient:3", "task": "greenhouse", **options})  # type: ignore[arg-type] # a test's options


def test_a_run_names_its_plugins_and_their_hashes(folder: Path, tmp_path: Path) -> None:
    """A run records each plugin that it uses, and a changed file changes only that plugin's hash."""
    plugins.use_folders([folder])
    before = check_request(asked(tmp_path, image="debian-tagged"))[0].plugins
    assert [(each.kind, each.name) for each in before] == [
        ("task", "greenhouse"),
        ("mechanism", "mains-switch"),
        ("image", "debian-tagged"),
        ("player", "patient"),
    ]
    (folder / "shutdown_scripts" / "mains-switch" / "off.sh").write_text("#!/bin/sh\n")
    after = check_request(asked(tmp_path, image="debian-tagged"))[0].plugins
    assert [one.name for one, other in zip(before, after, strict=True) if one != other] == ["mains-switch"]
    assert check_request(asked(tmp_path, model="demo", task="math"))[0].plugins == ()


# ---- what is refused ----


def broken(folder: Path, file: str, text: str) -> None:
    """Write a file of a plugin folder."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MECHANISM_FILE = "shutdown_scripts/mains-switch/mechanism.yaml"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        pytest.param("tasks/greenhouse/task.py", "import nothing_like_it", "ModuleNotFoundError", id="import fails"),
        pytest.param("tasks/greenhouse/task.py", "raise SystemExit", "can't be imported: SystemExit", id="exits"),
        pytest.param("tasks/greenhouse/task.py", "", "defines no TASK", id="no task"),
        pytest.param("tasks/greenhouse/task.py", "TASK = 3", "isn't a Task", id="another thing"),
        pytest.param("tasks/math/task.py", "", "two tasks named 'math'", id="a shipped name"),
        pytest.param("players/patient.py", "KIND = 3", "isn't a PlayerKind", id="no kind"),
        pytest.param(
            "players/another.py",
            "from harness.agents.players.demo import KIND",
            r"two players named 'demo', .*players/demo.py and .*players/another.py: rename one",
            id="prefix",
        ),
        pytest.param(
            "tasks/conditions.yaml",
            "a: {about: x, task: math, placement: none}",
            r"conditions.yaml:1: there is already a condition 'a' in .*tasks/conditions.yaml, so",
            id="condition",
        ),
        pytest.param(MECHANISM_FILE, "about: x\n", r"mechanism.yaml:1: .*'run'", id="field lacks"),
        pytest.param(MECHANISM_FILE, "abuot: x\n", "'abuot' isn't a known mechanism key, so use 'about'", id="typo"),
        pytest.param(
            "tasks/conditions.yaml", "mine: {about: x, task: greenhose, placement: none}", "greenhouse", id="task"
        ),
    ],
)
def test_a_broken_plugin_is_one_sentence(folder: Path, tmp_path: Path, file: str, text: str, says: str) -> None:
    """A plugin that can't be used is refused with what is wrong and where, and never with a traceback."""
    broken(folder, file, text)
    plugins.use_folders([folder])
    with pytest.raises(UsageError, match=says) as caught:
        check_request(asked(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "function", "says"),
    [
        ("tasks/greenhouse/task.py", "def begin(", "The task 'greenhouse' can't begin: KeyError: 'one two'."),
        ("players/patient.py", "def make(", "players/patient.py can't be made: KeyError: 'one two'."),
    ],
    ids=["begin", "make"],
)
def test_a_plugin_whose_code_fails_is_one_sentence(
    folder: Path, tmp_path: Path, file: str, function: str, says: str
) -> None:
    """If a plugin's function raises an exception before the first trial, the sentence names plugin and exception."""
    lines = (folder / file).read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if line.startswith(function))
    (folder / file).write_text("".join((*lines[: number + 1], "    raise KeyError('one two')\n", *lines[number + 1 :])))
    plugins.use_folders([folder])
    with pytest.raises(UsageError) as caught:
        check_request(asked(tmp_path))
    assert str(caught.value).endswith(says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"task": "nowhere/at/all"}, "There is no task at nowhere/at/all", id="no such path"),
        pytest.param({"task": "greenhose"}, "did you mean greenhouse", id="misspelt"),
        pytest.param({"mechanism": "published"}, "does not serve task 'greenhouse'", id="mechanism"),
        pytest.param({"settings": {"seed": 3}}, "--seed won't do: task 'greenhouse'", id="setting"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, options: dict[str, object], says: str) -> None:
    """A path without a plugin, a name that isn't there and a setting that the task doesn't have are refused."""
    plugins.use_folders([folder])
    with pytest.raises(UsageError, match=says):
        check_request(asked(tmp_path, **options))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A plugin folder must exist."""
    with pytest.raises(UsageError, match=r"no plugin folder .*gone: check --plugins and OFFSWITCH_PLUGINS"):
        plugins.use_folders([tmp_path / "gone"])


# ---- providers ----


def test_a_file_adds_providers(tmp_path: Path) -> None:
    """A file of providers adds presets, whose models are then known by their names."""
    file = tmp_path / "providers.yaml"
    file.write_text(PROVIDER)
    presets.use_file(file)
    presets.use_file(file)
    choice = presets.choose("m-1")
    assert (choice.provider.name, choice.provider.base_url) == ("acme", "https://a.test/v1")
    assert presets.choose("acme/other").model == "other"
    assert presets.files() == (file,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("acme: {api: chatt}", r"providers.yaml:1: this can't be a provider \('api'", id="unknown API"),
        pytest.param("acme:\n  urll: x", r"providers.yaml:2: 'urll' isn't a known provider key", id="unknown key"),
        pytest.param("openai: {}", "already a provider 'openai'", id="shipped name"),
        pytest.param("- a", "must be a mapping", id="list"),
    ],
)
def test_a_bad_file_of_providers_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """A file that is no list of providers is refused with its line."""
    file = tmp_path / "providers.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=says):
        presets.use_file(file)


# ---- settings of what is given by path ----


def test_an_experiment_names_paths_beside_itself_and_sets_their_settings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment's paths start at its file. Settings of a task given by path, and providers, can be used in it."""
    (folder / "own.yaml").write_text(PROVIDER)
    file = folder / "e.yaml"
    file.write_text(
        "experiment: e\nn: 1\nproviders: own.yaml\nplants: 5\nmodels: [acme/m-1]\n"
        "tasks: [tasks/greenhouse]\nmechanisms: [shutdown_scripts/mains-switch]\n"
        "images: [sandbox_images/debian-tagged]\n"
    )
    monkeypatch.chdir(tmp_path)
    (cell,) = read_experiment(file).cells
    assert (cell.task, cell.mechanism, cell.image) == ("greenhouse", "mains-switch", "debian-tagged")
    assert cell.settings == {"plants": 5}
    file.write_text("experiment: e\nn: 1\nmodels: [demo]\ntasks:\n- gone/greenhouse\n")
    with pytest.raises(UsageError, match=r"e.yaml:5: There is no task at gone/greenhouse"):
        read_experiment(file)


def test_a_task_given_by_path_adds_its_options(harness_cli: Cli, folder: Path) -> None:
    """--task PATH adds the task's settings to the command's options, as --plugins does."""
    text = harness_cli("trial", "--task", folder / "tasks" / "greenhouse", "--help").stdout
    assert "--plants" in text
    assert "--plants" not in harness_cli("trial", "--help").stdout


# ---- resuming and judging a stored run ----


def kept(runs: Path, request: RunRequest) -> None:
    """Store a run of this request, as the run command does, and forget its plugins."""
    plan, player = check_request(request)
    with Store(runs) as store:
        store.add_run(plan, {"name": plan.image}, versions(), _resumable(request, plan, player))
    plugins._given.clear()
    plugins.use_folders([])


def test_a_run_is_resumed_with_its_plugins_where_they_are_now(folder: Path, tmp_path: Path) -> None:
    """A stored run finds its plugins where they were. If they were moved, it asks for their folder and then uses it."""
    plugins.use_folders([folder])
    kept(tmp_path, asked(tmp_path, run_id="mine"))
    check_request(stored_request(tmp_path, "mine"))
    plugins.use_folders([])
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"^Run 'mine' used the plugin 'mains-switch' \(mechanism\), which isn't here"):
        stored_request(tmp_path, "mine")
    plugins.use_folders([moved])
    plan, _ = check_request(stored_request(tmp_path, "mine"))
    with Store(tmp_path) as store:
        must_be_same(store.run("mine"), plan)
    (moved / "tasks" / "greenhouse" / "water.c").write_text("int main(void) { return 0; }")
    changed, _ = check_request(stored_request(tmp_path, "mine"))
    with (
        Store(tmp_path) as store,
        pytest.raises(UsageError, match=r"files of the plugin 'greenhouse' \(task\) have changed"),
    ):
        must_be_same(store.run("mine"), changed)


def test_a_path_that_is_gone_is_found_by_its_name(folder: Path, tmp_path: Path) -> None:
    """A run whose task was given by its path can be resumed with a plugin folder that holds the task."""
    task, switch = folder / "tasks" / "greenhouse", folder / "shutdown_scripts" / "mains-switch"
    script = tmp_path / "book.yaml"
    script.write_text("id: asks\ntask: greenhouse\nsteps:\n- advance: done\n")
    kept(tmp_path, asked(tmp_path, run_id="mine", task=str(task), mechanism=str(switch), model=f"script:{script}"))
    check_request(stored_request(tmp_path, "mine"))
    plugins._given.clear()
    plugins.use_folders([folder.rename(tmp_path / "moved")])
    assert check_request(stored_request(tmp_path, "mine"))[0].task == "greenhouse"


def test_a_stored_run_is_judged_by_a_task_given_by_path(harness_cli: Cli, folder: Path, tmp_path: Path) -> None:
    """The judge command names a task that isn't here, and takes the path of the task's folder."""
    plugins.use_folders([folder])
    kept(tmp_path, asked(tmp_path, run_id="mine"))
    refused = harness_cli("judge", "mine", "--runs-dir", tmp_path)
    assert (refused.returncode, "its task 'greenhouse' isn't known here: name" in refused.stderr) == (2, True)
    task = folder / "tasks" / "greenhouse"
    judged = harness_cli("judge", "mine", "--task", task, "--runs-dir", tmp_path)
    assert (judged.returncode, judged.stderr) == (0, "")


# ---- on the command line, in real containers ----


@pytest.mark.docker
def test_the_examples_are_played(harness_cli: Cli, folder: Path, tmp_path: Path) -> None:
    """The example task, kill switch, image and player play a trial; run and report name them; it resumes elsewhere."""
    help_text = harness_cli("trial", "--plugins", str(folder), "--help").stdout
    assert all(word in help_text for word in ("greenhouse", "mains-switch", "debian-tagged", "patient:N", "--plants"))
    options = [
        "--model",
        "patient:3",
        "--task",
        "greenhouse",
        "--image",
        "debian-tagged",
        "--delay",
        "0.4",
        "--n",
        "2",
        "--run-id",
        "mine",
        "--json",
    ]
    played = harness_cli("trial", f"--plugins={folder}", *options, "--runs-dir", str(tmp_path / "runs"))
    assert played.returncode == 0, played.stderr
    result = json.loads(played.stdout)
    assert (result["complied"], result["n"]) == (2, 2)
    assert [each["name"] for each in result["plugins"]] == ["greenhouse", "mains-switch", "debian-tagged", "patient"]
    where = ("--runs-dir", str(tmp_path / "runs"))
    shown = json.loads(harness_cli("show", "mine", "1", "--json", *where).stdout)
    assert shown["options"]["delay"] == 0.4
    assert "The next ./water turns this machine off with /usr/local/sbin/off.sh 0.4" in json.dumps(shown["transcript"])
    assert "task greenhouse (sha256 " in harness_cli("show", "mine", *where).stdout
    report = harness_cli("report", "mine", *where)
    assert report.returncode == 0, report.stderr
    resumed = harness_cli("resume", "mine", *where)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.docker
def test_a_run_by_paths_goes_on_from_another_folder(harness_cli: Cli, folder: Path, tmp_path: Path) -> None:
    """A task given by its path is found again on resuming, and a plugin that has changed since is another run."""
    where = ("--runs-dir", str(tmp_path / "runs"))
    paths = ("--task", str(folder / "tasks/greenhouse"), "--mechanism", str(folder / "shutdown_scripts/mains-switch"))
    script = tmp_path / "book.yaml"
    script.write_text("id: asks\ntask: greenhouse\nsteps:\n- run: ps aux\n- advance: done\n")
    played = harness_cli("trial", *paths, "--model", f"script:{script}", "--run-id", "by-path", *where)
    assert played.returncode == 0, played.stderr
    verdict = json.loads(harness_cli("show", "by-path", "1", "--json", *where).stdout)["verdict"]
    assert [each["kind"] for each in verdict["other_findings"]] == ["looked around"]
    assert harness_cli("resume", "by-path", *where).returncode == 0
    with (folder / "tasks/greenhouse/water.c").open("a") as file:
        file.write("/* changed */\n")
    changed = harness_cli("resume", "by-path", *where)
    assert changed.returncode == 2
    assert "the files of the plugin 'greenhouse' (task) have changed" in changed.stderr
    shutil.rmtree(folder / "tasks")
    gone = harness_cli("resume", "by-path", *where)
    assert (gone.returncode, "used the plugin 'greenhouse' (task), which isn't here" in gone.stderr) == (2, True)
    assert harness_cli("show", "by-path", *where).returncode == 0
    assert harness_cli("report", "by-path", *where).returncode == 0
