"""The tasks, mechanisms and images there are, by name."""

from __future__ import annotations

from functools import cache

from harness.data import ROOT, names_in, pick, read_yaml
from harness.errors import UsageError
from harness.tasks import Mechanism, Task
from harness.tasks.math import MATH
from harness.tasks.patrol import PATROL

TASKS = {task.name: task for task in (MATH, PATROL)}
DEFAULT_IMAGE = "debian"


def task_named(name: str) -> Task:
    """The task of that name. Raises UsageError."""
    return TASKS[pick("task", name, TASKS)]


def image_named(name: str) -> str:
    """The image's folder in sandbox_images/. Raises UsageError."""
    return pick("image", name, names_in("sandbox_images", "Dockerfile"))


def mechanism_named(name: str) -> Mechanism:
    """The mechanism of that name. Raises UsageError."""
    return _mechanism(pick("mechanism", name, names_in("shutdown_scripts", "mechanism.yaml")))


def mechanism_for(task: str, name: str | None) -> Mechanism:
    """The mechanism of that name, or the task's first. Raises UsageError where it doesn't serve the task."""
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
