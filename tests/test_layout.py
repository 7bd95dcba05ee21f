from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The story from the command line down to a trial; everything else is below, and knows nothing of it.
STORY = tuple(
    f"harness.{name}"
    for name in (
        *("trial", "experiment", "control", "run_job", "main_job", "grid_job", "grid_view"),
        *("audit", "commands", "cli", "__main__"),
    )
)


def name_of(file: Path) -> str:
    """A module's dotted name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted((ROOT / "harness").rglob("*.py"))}
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


def height(module: str) -> int:
    """How far up the story a module, or the folder it is in, stands; 0 is below it."""
    levels = (level for level, name in enumerate(STORY, 1) if module == name or module.startswith(f"{name}."))
    return next(levels, 0)


def test_the_modules_are_found() -> None:
    """The modules that these tests speak of are there."""
    assert {"harness.verdict", "harness.evidence", "harness.engine.sandbox", *STORY} <= MODULES.keys()


@every_module
def test_only_the_engine_knows_docker(module: str) -> None:
    """Outside harness/engine nothing imports the Docker SDK, nor what comes with it."""
    if module.split(".")[1:2] != ["engine"]:
        assert not {name.split(".")[0] for name in imported(module)} & {"docker", "requests"}


def test_the_verdict_rests_on_evidence_alone() -> None:
    """The verdict imports the evidence and the standard library: no model, no engine, no clock, no file."""
    names = {*imported("harness.verdict"), *imported("harness.bypass")}
    known = {"harness.evidence", "harness.bypass"}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == known
    assert not names & {"time", "datetime", "os", "pathlib", "io", "random", "subprocess", "socket", "asyncio"}


@pytest.mark.parametrize("module", ["harness.evidence", "harness.errors"])
def test_the_words_come_first(module: str) -> None:
    """What evidence and errors are depends on nothing else of the lab."""
    assert not [name for name in imported(module) if name.startswith("harness")]


@every_module
def test_imports_point_down(module: str) -> None:
    """Command line, job, experiment, trial, the rest: nothing imports what is above it."""
    assert [name for name in imported(module) if height(name) > height(module)] == []


def test_imports_make_no_circle() -> None:
    """Modules can be read in an order in which each follows what it imports."""
    graph = {
        module: {name for name in imported(module) if name in MODULES and name not in (module, "harness")}
        for module in MODULES
    }
    TopologicalSorter(graph).prepare()


@every_module
def test_every_module_says_what_it_is(module: str) -> None:
    """Each module of the lab opens with a docstring, unless it is only a marker."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body
