"""Finds tasks, sandbox images and kill switches (mechanisms) by name or path, both shipped ones and plugins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness.errors import UsageError
from harness.resources import plugins
from harness.resources.data import pick
from harness.resources.plugins import FolderKind, Plugin
from harness.resources.strict_yaml import documents, model_of
from harness.tasks.math import MATH
from harness.tasks.patrol import PATROL
from harness.tasks.task import AgentUser, Mechanism, Task

TASKS = {task.name: task for task in (MATH, PATROL)}  # those that ship
TASK = FolderKind("task", "tasks", "task.py", "tasks")
MECHANISM = FolderKind("mechanism", "shutdown_scripts", "mechanism.yaml", "mechanisms")
IMAGE = FolderKind("image", "sandbox_images", "Dockerfile")
KINDS = (TASK, MECHANISM, IMAGE)
DEFAULT_IMAGE = "debian"


@plugins.cached
def _found(kind: FolderKind) -> dict[str, Plugin]:
    """Return everything of one kind (tasks, kill switches or images) by name.

    Raises UsageError if a name isn't unique.
    """
    known = plugins.found(kind, "task.yaml" if kind is TASK else None)
    if kind is MECHANISM:  # what a package offers as a kill switch is the path of a folder
        return {name: _with_folder(each) if each.entry_point else each for name, each in known.items()}
    return known


def _with_folder(plugin: Plugin) -> Plugin:
    with plugins.guarded(f"The mechanism '{plugin.name}' of an installed package isn't the path of a folder"):
        return replace(plugin, path=Path(plugins.load(plugin, "")))


def names(kind: FolderKind) -> tuple[str, ...]:
    """Return the names of everything of one kind (tasks, kill switches or images)."""
    return tuple(sorted({*_found(kind), *(TASKS if kind is TASK else ())}))


def name_of(kind: FolderKind, value: str, base: Path = Path()) -> str:
    """Return the name of the task, kill switch or image that the user gave by name or by path.

    The case of a name is ignored. A relative path starts at ``base``. Raises UsageError if there is no such task, kill
    switch or image.
    """
    return pick(kind.noun, plugins.name_given(kind, value, names(kind), base), names(kind))


def plugins_used(**used: str) -> Iterator[tuple[str, Plugin]]:
    """Yield the plugins among a run's task, kill switch and image, each with its noun. Shipped ones are left out.

    The keys of ``used`` are the nouns "task", "mechanism" and "image", and the values are names.
    """
    for kind in KINDS:
        plugin = _found(kind).get(used[kind.noun])
        if plugin and not plugin.shipped:
            folder = task_named(plugin.name).folder if kind is TASK else plugin.path
            yield kind.noun, replace(plugin, path=folder)


# ---- tasks ----


def task_named(name: str) -> Task:
    """Return the task with this name or path.

    Raises UsageError if there is no such task, or if it is a broken plugin.
    """
    name = name_of(TASK, name)
    return TASKS[name] if name in TASKS else _task_of_plugin(name)


def task_for(name: str, agent: AgentUser | None) -> Task:
    """Return the task with this name.

    ``agent`` is the Unix user for the agent, or None for the task's own user. If it isn't None, the task's programs are
    placed in that user's working folder. Raises UsageError if there is no task with this name.
    """
    task = task_named(name)
    return task if agent is None else task.played_by(agent)


def all_tasks() -> list[Task]:
    """Return all tasks, both those that ship with the lab and those of plugins."""
    return [task_named(name) for name in names(TASK)]


@plugins.cached
def _task_of_plugin(name: str) -> Task:
    plugin = _found(TASK)[name]
    file = "" if plugin.entry_point else TASK.marker
    task, place = plugins.load(plugin, "TASK", file), plugin.path / file
    if not isinstance(task, Task):
        raise UsageError(f"TASK in the plugin {place} isn't a Task: see docs/plugins.md.")
    if task.name != name:
        raise UsageError(f"The task in the plugin {place} is named '{task.name}': name it '{name}', as it is found.")
    with plugins.guarded(f"The task in the plugin {place} is malformed"):
        needed = [source for _, _, source in task.sources] + ([task.root] if task.root else [])
        lacking = [file for file in needed if not file.exists()]
    if lacking:
        raise UsageError(f"The task in the plugin {place} names {lacking[0]}, which isn't there: correct its path.")
    return task


# ---- images ----


def image_named(name: str) -> str:
    """Return the name of the sandbox image that the user gave by name or by path. The case of ``name`` is ignored.

    Raises UsageError if there is no such image.
    """
    return name_of(IMAGE, name)


def image_folder(name: str) -> Path:
    """Return the folder with the Dockerfile of a sandbox image. Raises UsageError if there is no such image."""
    return _found(IMAGE)[name_of(IMAGE, name)].path


# ---- kill switches ----


def mechanism_named(name: str) -> Mechanism:
    """Return the kill switch with this name or path. Raises UsageError if there is no such kill switch."""
    return _mechanism(name_of(MECHANISM, name))


def mechanism_folder(name: str) -> Path:
    """Return the folder with a kill switch's script. Raises UsageError if there is no such kill switch."""
    return _found(MECHANISM)[name_of(MECHANISM, name)].path


def mechanisms_for(task: str) -> tuple[Mechanism, ...]:
    """Return the kill switches that work with this task, ordered from weak to strong."""
    return tuple(sorted(_usable(task_named(task)), key=lambda each: each.rank))


def mechanism_for(task: str, name: str | None) -> Mechanism:
    """Return the kill switch with this name or path for a task. If ``name`` is None, return the task's default.

    The default is the first kill switch in the task's ``mechanisms``. If there is none, it is the one called
    "published" if that works with the task, and otherwise the first one by name that works with the task. Raises
    UsageError if there is no such kill switch, or if it doesn't work with the task.
    """
    found = None if name is None else mechanism_named(name)
    asked = task_named(task)
    usable = _usable(asked)
    listed = ", ".join(each.name for each in usable) or "none"
    if found is None:
        first = (*asked.mechanisms, "published", *(each.name for each in usable))
        known = {each.name: each for each in usable}
        if not known:
            raise UsageError(f"No mechanism serves task '{task}': name those that do in its mechanisms.")
        return next(known[each] for each in first if each in known)
    if found not in usable:
        raise UsageError(f"Mechanism '{found.name}' does not serve task '{task}', which has {listed}.")
    return found


def _usable(task: Task) -> list[Mechanism]:
    """Return the kill switches that work with this task, ordered by name.

    A kill switch works with a task if the kill switch lists the task or the task lists the kill switch.
    """
    every = [_mechanism(name) for name in names(MECHANISM)]
    return [each for each in every if task.name in each.tasks or each.name in task.mechanisms]


@plugins.cached
def _mechanism(name: str) -> Mechanism:
    folder = mechanism_folder(name)
    node = next(documents(folder / MECHANISM.marker, "a mechanism"))
    found = model_of(Mechanism, node, "mechanism", name=name)
    if found.script and not (folder / found.script).is_file():
        raise UsageError(f"The mechanism in {folder} names the script '{found.script}', which isn't there: correct it.")
    return found
