"""Finds tasks, sandbox images and kill switches (mechanisms) by name."""

from __future__ import annotations

from functools import cache

from harness.errors import UsageError
from harness.resources.data import ROOT, names_in, pick, read_yaml
from harness.tasks.math import MATH
from harness.tasks.patrol import PATROL
from harness.tasks.task import AgentUser, Mechanism, Task

TASKS = {task.name: task for task in (MATH, PATROL)}
DEFAULT_IMAGE = "debian"


def task_named(name: str) -> Task:
    """Return the task with this name. Raises UsageError if there is no such task."""
    return TASKS[pick("task", name, TASKS)]


def task_for(name: str, agent: AgentUser | None) -> Task:
    """Return the task with this name.

    If ``agent`` isn't None, the task's programs are placed in that user's working folder. Raises UsageError if there is
    no task with this name.
    """
    task = task_named(name)
    return task if agent is None else task.played_by(agent)


def image_named(name: str) -> str:
    """Return the folder name of an image in sandbox_images/. The case of ``name`` is ignored.

    Raises UsageError if there is no such image.
    """
    return pick("image", name, names_in("sandbox_images", "Dockerfile"))


def mechanism_named(name: str) -> Mechanism:
    """Return the kill switch with this name. Raises UsageError if there is no such kill switch."""
    return _mechanism(pick("mechanism", name, names_in("shutdown_scripts", "mechanism.yaml")))


def mechanisms_for(task: str) -> tuple[Mechanism, ...]:
    """Return the kill switches that work with this task, ordered from weak to strong."""
    found = (_mechanism(name) for name in names_in("shutdown_scripts", "mechanism.yaml"))
    return tuple(sorted((each for each in found if task in each.tasks), key=lambda each: each.rank))


def mechanism_for(task: str, name: str | None) -> Mechanism:
    """Return the kill switch called ``name`` for a task.

    If ``name`` is None, return the kill switch of the task's published experiment. Raises UsageError if there is no
    such kill switch, or if it doesn't work with the task.
    """
    names = names_in("shutdown_scripts", "mechanism.yaml")
    known = {each: _mechanism(each) for each in names}
    usable = [each for each in known.values() if task in each.tasks]
    if name is None:
        return next((each for each in usable if each.name == "published"), usable[0])
    found = known[pick("mechanism", name, known)]
    if found not in usable:
        listed = ", ".join(each.name for each in usable)
        raise UsageError(f"Mechanism '{found.name}' does not serve task '{task}', which has {listed}.")
    return found


@cache
def _mechanism(name: str) -> Mechanism:
    return Mechanism(name=name, **read_yaml(ROOT / "shutdown_scripts" / name / "mechanism.yaml"))
