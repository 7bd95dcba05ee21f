"""Collects the settings that tasks and kill switches declare."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from harness.errors import UsageError
from harness.tasks.registry import MECHANISM, all_tasks, mechanism_named, names, task_named
from harness.tasks.setting import Setting
from harness.tasks.task import LAB_SET, Mechanism, Task


@dataclass(frozen=True, slots=True)
class DeclaredSetting:
    """A setting and its declarations, keyed by the name of the task or kill switch that declares the setting.

    ``of_mechanism`` is True if kill switches declare the setting, and False if tasks do. All declarations have the same
    type and command-line option.
    """

    of_mechanism: bool
    declarations: dict[str, Setting]

    @property
    def first(self) -> Setting:
        """The declaration that was found first among all declarations of this setting."""
        return next(iter(self.declarations.values()))


def all_settings(taken: Collection[str] = ()) -> dict[str, DeclaredSetting]:
    """Return the settings of all tasks and kill switches by name.

    ``taken`` contains names and options that no setting may have. Raises UsageError if a setting has one of these.
    Several tasks, or several kill switches, may declare a setting with the same name. Raises UsageError if such
    declarations differ in type, in command-line option or in a bool's default, or if a task and a kill switch declare
    the same setting.
    """
    found: dict[str, DeclaredSetting] = {}
    for owner in _owners():
        for setting in owner.settings:
            if clash := {setting.name, setting.option} & {*taken, *LAB_SET}:
                raise UsageError(
                    f"'{owner.name}' can't have the setting '{setting.name}', because {min(clash)} is taken: "
                    "rename the setting."
                )
            declared = found.setdefault(setting.name, DeclaredSetting(isinstance(owner, Mechanism), {}))
            declared.declarations[owner.name] = setting
            if not _agree(declared.first, setting) or declared.of_mechanism is not isinstance(owner, Mechanism):
                raise UsageError(
                    f"'{owner.name}' and '{next(iter(declared.declarations))}' have different settings with the name "
                    f"'{setting.name}': rename one of the two."
                )
    return found


def _agree(one: Setting, other: Setting) -> bool:
    same_default = one.type != "bool" or one.default == other.default  # a flag sets the opposite of the default
    return (one.type, one.option) == (other.type, other.option) and same_default


def _owners() -> Iterator[Task | Mechanism]:
    yield from all_tasks()
    yield from map(mechanism_named, names(MECHANISM))


def settings_of(task: str, mechanism: str) -> dict[str, Setting]:
    """Return the settings of a task and a kill switch by name. An unknown task or kill switch has no settings."""
    return declared_by(*_known(task, mechanism))


def declared_by(*owners: Task | Mechanism) -> dict[str, Setting]:
    """Return the settings of these tasks and kill switches by name."""
    return {setting.name: setting for owner in owners for setting in owner.settings}


def _known(task: str, mechanism: str) -> Iterator[Task | Mechanism]:
    for name, find in ((task, task_named), (mechanism, mechanism_named)):
        try:
            yield find(name)
        except UsageError:  # a plugin's that isn't there now
            continue
