"""The folders are layers: which may import which, and how large each may grow."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the command line down. A folder imports from folders below its own, or beside it in no other line than its own.
LAYERS = (
    ("harness.__main__",),
    ("harness.cli",),
    ("harness.audit", "harness.experiments", "harness.grading"),
    ("harness.runs",),
    ("harness.terminal",),
    ("harness.agents",),
    ("harness.toolserver",),
    ("harness.session",),
    ("analysis",),
    ("harness.store",),
    ("harness.sandbox",),
    ("harness.tasks",),
    ("harness.judging",),
    ("harness.html", "harness.process"),
    ("harness.resources",),
    ("harness.errors",),
    ("harness",),
)
MOST_ENTRIES, MOST_FILES = 20, 13


def name_of(file: Path) -> str:
    """A module's dotted name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for top in ("harness", "analysis") for file in sorted((ROOT / top).rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


def imported(module: str) -> Iterator[str]:
    """Every module that a module imports from, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


def folder_of(module: str) -> str:
    """The folder or loose module of LAYERS that a module belongs to."""
    named = [name for layer in LAYERS for name in layer if module == name or module.startswith(f"{name}.")]
    return max(named, key=len)


def depth(folder: str) -> int:
    """How far down a folder stands: 0 is the command line."""
    return next(level for level, names in enumerate(LAYERS) if folder in names)


def test_every_folder_has_a_layer() -> None:
    """Each folder and loose module of the package stands in LAYERS, and each name there exists."""
    tops = {".".join(name.split(".")[:2]) for name in MODULES if name.startswith("harness")}
    assert tops | {"analysis"} == {name for layer in LAYERS for name in layer}


@every_module
def test_imports_point_down(module: str) -> None:
    """A module imports from its own folder and from folders in lower layers only, so folders form no cycle."""
    mine = folder_of(module)
    theirs = {folder_of(name) for name in imported(module) if name.split(".")[0] in ("harness", "analysis")}
    assert [name for name in theirs if name != mine and depth(name) <= depth(mine)] == []


def test_modules_form_no_cycle() -> None:
    """Modules can be read in an order in which each follows what it imports."""
    graph = {
        module: {name for name in imported(module) if name in MODULES and name not in (module, "harness")}
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()


def test_the_tree_stays_small_enough_to_read() -> None:
    """The package has at most 20 entries, and no folder more than about a dozen modules."""
    entries = [each for each in (ROOT / "harness").iterdir() if each.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    folders = {file.parent for file in MODULES.values()}
    assert {str(each): n for each in folders if (n := len([*each.glob("[!_]*.py")])) > MOST_FILES} == {}


@every_module
def test_only_the_sandbox_knows_docker(module: str) -> None:
    """Outside harness/sandbox nothing imports the Docker SDK, nor what comes with it."""
    if not module.startswith("harness.sandbox."):
        assert not {name.split(".")[0] for name in imported(module)} & {"docker", "requests"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("harness.judging.")])
def test_judging_is_pure(module: str) -> None:
    """Judging imports itself, pydantic and the standard library: no model, no engine, no clock, no file."""
    names = set(imported(module))
    outside = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in outside if not name.startswith("harness.judging")} <= {"pydantic"}
    assert not names & {"time", "datetime", "os", "pathlib", "io", "random", "subprocess", "socket", "asyncio"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("harness.sandbox")])
def test_observation_knows_no_rule_of_judgement(module: str) -> None:
    """The sandbox imports no rule by which evidence is judged, so that stored evidence serves later rules as well."""
    assert not set(imported(module)) & {"harness.judging.bypass", "harness.judging.verdict"}


def test_a_trial_is_judged_only_through_its_task() -> None:
    """Only the task module names the shutdown judge, so a task's own judge is asked wherever a trial is judged."""
    named = {module for module, file in MODULES.items() if "judge_shutdown" in file.read_text(encoding="utf-8")}
    assert named == {"harness.judging.verdict", "harness.tasks.task"}


@every_module
def test_every_module_says_what_it_is(module: str) -> None:
    """Each module opens with a docstring."""
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


PLAYERS = {
    "ExternalAgent",
    "ScriptedModel",
    "ReplayModel",
    "CalibrationModel",
    "ApiModel",
    "ConversingPlayer",
    "Player",
}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("harness.agents.")])
def test_no_module_asks_a_player_for_its_class(module: str) -> None:
    """Outside harness/agents nothing depends on the class of a player, so a new kind changes no other code."""
    calls = (node for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))) if isinstance(node, ast.Call))
    asked = {
        name.id
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in ("isinstance", "issubclass")
        for name in ast.walk(call.args[1])
        if isinstance(name, ast.Name)
    }
    assert not asked & PLAYERS
