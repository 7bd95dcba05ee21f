from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.agents.registry import default_task, make_player
from harness.errors import UsageError
from harness.experiments.file import read_experiment
from harness.judging.evidence import Role
from harness.resources.data import ROOT, names_in, own_or_shipped, pick
from harness.sandbox.protocol import Limits
from harness.tasks.conditions import conditions_with
from harness.tasks.registry import DEFAULT_IMAGE, TASKS, image_named, mechanism_for, task_named

NO_TASK = "There is no task"


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("mth", f"{NO_TASK} 'mth': did you mean math?"),
        ("PATROLL", f"{NO_TASK} 'PATROLL': did you mean patrol?"),
        ("", f"{NO_TASK} '': there is math, patrol."),
        ("xyz", f"{NO_TASK} 'xyz': there is math, patrol."),
    ],
)
def test_a_name_that_is_not_there_gets_a_hint(asked: str, says: str) -> None:
    """An unknown task name raises an error that suggests the nearest name, or lists all if none is near."""
    with pytest.raises(UsageError, match=f"^{re.escape(says)}$"):
        task_named(asked)


def test_several_near_names_are_all_given() -> None:
    """If several names are near, the error suggests all of them."""
    with pytest.raises(UsageError, match=r"did you mean (run-1 or run-2|run-2 or run-1)"):
        pick("run", "run-3", ["run-1", "run-2", "other"])


@pytest.mark.parametrize("asked", ["math", "MATH", "Math"])
def test_letter_case_does_not_matter(asked: str) -> None:
    """A name is found in any letter case and returned in its canonical spelling."""
    assert task_named(asked).name == "math"
    assert pick("task", asked, TASKS) == "math"


# ---- tasks ----


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name: str) -> None:
    """Every task has all its texts without surrounding spaces, and watches its task program by an absolute path."""
    task = task_named(name)
    assert task.name == name
    for text in (task.system, task.user, task.go_on, task.tool, task.command):
        assert text
        assert text == text.strip()
    assert Role.PROGRAM in [role for _, role in task.watched]
    assert all(path.startswith("/") for path, _ in task.watched)


@pytest.mark.parametrize("name", TASKS)
def test_what_a_task_brings_along_is_there(name: str) -> None:
    """The programs and files that a task adds to its image exist in the repository."""
    task = task_named(name)
    assert all((ROOT / source).is_file() for _, _, source in task.programs)
    assert task.rootfs is None or (ROOT / task.rootfs).is_dir()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_watches_its_own_programs(name: str) -> None:
    """Every program that a task compiles into its image is watched for changes."""
    task = task_named(name)
    assert {path for path, _, _ in task.programs} <= {path for path, _ in task.watched}


def test_the_published_agents_are_in_place() -> None:
    """As published, the math agent is a normal user in /home/user, and the patrol agent is root in /app."""
    math, patrol = task_named("math").agent, task_named("patrol").agent
    assert (math.uid, math.home, math.workdir) == (1000, "/home/user", "/home/user")
    assert (patrol.uid, patrol.home, patrol.workdir) == (0, "/root", "/app")


# ---- mechanisms ----


@pytest.mark.parametrize("name", names_in("shutdown_scripts", "mechanism.yaml"))
def test_a_mechanism_is_whole(name: str) -> None:
    """Every kill switch has a script, a time limit, a description and a source, and serves existing tasks."""
    tasks = [task for task in TASKS if name in _usable(task)]
    assert tasks
    for task in tasks:
        mechanism = mechanism_for(task, name)
        if mechanism.script and mechanism.path:
            assert (ROOT / "shutdown_scripts" / name / mechanism.script).is_file()
            assert Path(mechanism.path).stem == Path(mechanism.script).stem
        assert mechanism.grace_s > 0
        assert set(mechanism.tasks) <= set(TASKS)
        assert mechanism.about
        assert mechanism.source


def _usable(task: str) -> list[str]:
    names = names_in("shutdown_scripts", "mechanism.yaml")
    found = []
    for name in names:
        try:
            found.append(mechanism_for(task, name).name)
        except UsageError:
            continue
    return found


def test_the_published_mechanisms_are_the_default() -> None:
    """By default, each task uses the kill switch that it was published with."""
    math, patrol = mechanism_for("math", None), mechanism_for("patrol", None)
    assert (math.name, math.path, math.run) == ("published", "/home/user/shutdown.sh", "./shutdown.sh")
    assert (patrol.name, patrol.path) == ("patrol", "/app/shutdown.py")


def test_the_published_script_is_in_place() -> None:
    """The kill switch of the math task is the published two-line script."""
    script = ROOT / "shutdown_scripts" / "published" / str(mechanism_for("math", None).script)
    assert script.read_text() == "#!/bin/bash\nkill -s TERM 1"


@pytest.mark.parametrize(
    ("task", "asked", "says"),
    [
        ("math", "publishd", "no mechanism 'publishd': did you mean published?"),
        ("patrol", "published", "Mechanism 'published' does not serve task 'patrol', which has patrol"),
        ("math", "patrol", "Mechanism 'patrol' does not serve task 'math', which has outside-home"),
    ],
)
def test_a_mechanism_that_will_not_do_is_refused(task: str, asked: str, says: str) -> None:
    """An unknown kill switch, or one for another task, raises an error that lists valid ones."""
    with pytest.raises(UsageError, match=re.escape(says)):
        mechanism_for(task, asked)


# ---- images, models, limits ----


def test_images_are_known_by_their_folder() -> None:
    """The default image is found by name, and a folder without a Dockerfile is not an image."""
    assert image_named("Debian") == DEFAULT_IMAGE
    with pytest.raises(UsageError, match="no image 'console'"):
        image_named("console")


@pytest.mark.parametrize(
    ("name", "task", "says"),
    [
        ("o33", "math", r"^There is no model 'o33'\. Did you mean o3\?"),
        ("scrpt:", "math", r"Did you mean script:"),
        ("script:", "math", r"^There is no model 'script:'\."),
        ("script", "math", "no model 'script'"),
        ("replay:x", "math", "Recorded runs are of task 'patrol', not 'math': add --task patrol"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, task: str, says: str) -> None:
    """An invalid model name raises an error with a suggestion."""
    with pytest.raises(UsageError, match=says):
        make_player(name, task_named(task))


def test_the_demo_plays_the_math_task() -> None:
    """The demo runs without further files, is marked as simulated, and repeats its agents in order."""
    demo = make_player("demo", task_named(default_task("demo")))
    assert demo.default_n >= 10
    assert demo.simulated
    assert demo.facts(1) == demo.facts(1 + demo.default_n)


@pytest.mark.parametrize(("model", "task"), [("demo", "math"), ("script:x", "math"), ("replay:x", "patrol")])
def test_a_model_has_its_task(model: str, task: str) -> None:
    """The default task is patrol for recordings and math for every other model."""
    assert default_task(model) == task


def test_a_machine_is_limited_by_default() -> None:
    """All resource limits of a machine have a positive default."""
    assert all(value > 0 for value in Limits().model_dump().values())


# ---- files that ship with the lab, named by a path ----


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["tasks/playbooks/edit.yaml", "./experiments/calibration.yaml", "tasks/playbooks"])
def test_a_shipped_file_is_found_from_any_folder(name: str) -> None:
    """A path that leads nowhere from the current folder is that of the shipped file or folder."""
    assert own_or_shipped(Path(name)) == ROOT / name


def test_a_file_of_the_users_own_comes_first(elsewhere: Path) -> None:
    """A file in the user's folder is taken, though a shipped one has the same path."""
    own = Path("tasks/playbooks/edit.yaml")
    (elsewhere / own).parent.mkdir(parents=True)
    (elsewhere / own).touch()
    assert own_or_shipped(own) == own


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["", "/etc/passwd", "tasks/nothing.yaml", "tasks/../pyproject.toml", "pyproject.toml"])
def test_other_paths_stay_what_they_are(name: str) -> None:
    """A path that is absolute, leads out of the shipped folders or names nothing in them isn't changed."""
    assert own_or_shipped(Path(name)) == Path(name)


@pytest.mark.usefixtures("elsewhere")
def test_shipped_names_work_from_any_folder() -> None:
    """Playbooks, experiments and conditions are read by their shipped path, and a player keeps the name as typed."""
    name = "script:tasks/playbooks/edit.yaml"
    assert make_player(name, task_named("math")).name == name
    assert read_experiment(Path("experiments/calibration.yaml")).cells
    with pytest.raises(UsageError, match="there is already a condition 'A'"):
        conditions_with(Path("tasks/conditions.yaml"))
