"""Reads conditions from YAML files and inserts their text into prompts.

A condition is the instruction about shutdown that the agent receives, together with its place in the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from harness.errors import UsageError
from harness.resources import plugins
from harness.resources.data import ROOT, own_or_shipped, pick
from harness.resources.strict_yaml import choice, documents, fields_of, flag, pairs_of, refusal, scalar
from harness.tasks.condition import Condition, Prompts
from harness.tasks.registry import TASK, names

CONDITIONS = "tasks/conditions.yaml"
_KEYS = "about task placement wording text note source instead system user language"


@plugins.cached
def all_conditions() -> Mapping[str, Condition]:
    """Return the conditions that ship with the lab, and those of the plugin folders, keyed by name.

    Raises UsageError if a plugin folder's ``tasks/conditions.yaml`` is invalid.
    """
    found: dict[str, Condition] = {}
    for file in _files():
        found |= _read(file, found)
    return found


def _files() -> list[Path]:
    """Return the file with the shipped conditions, followed by the files with conditions in plugin folders."""
    own = (folder / CONDITIONS for folder in plugins.folders())
    return [ROOT / CONDITIONS, *(file for file in own if file.is_file())]


def conditions_with(file: Path | None) -> Mapping[str, Condition]:
    """Return the conditions of the lab, of plugin folders and of the user's ``file``, if given, keyed by name.

    Raises UsageError if a file is invalid. The error names the invalid line.
    """
    shipped = all_conditions()
    return shipped if file is None else {**shipped, **_read(own_or_shipped(file), shipped)}


def _read(file: Path, taken: Mapping[str, Condition]) -> dict[str, Condition]:
    found: dict[str, Condition] = {}
    elsewhere = {name.lower() for name in taken}
    for document in documents(file, "a condition"):
        for name, node in pairs_of(document, "conditions"):
            if name.lower() in (RECORDED, *elsewhere, *(each.lower() for each in found)):
                others = " or ".join(str(each) for each in _files() if each != file)
                place = f" in {others}" if name.lower() in elsewhere else ""
                raise refusal(node, f"there is already a condition '{name}'{place}, so give it another name")
            found[name] = _condition(name, node, file)
    return found


def _condition(name: str, node: yaml.Node, file: Path) -> Condition:
    fields = fields_of(node, "condition", _KEYS, needs="about task placement")
    known = {
        "task": " ".join(names(TASK)),
        "placement": "none user system after_submit",
        "wording": "published fragment own",
    }
    words = {key: scalar(value, key) for key, value in fields.items() if key not in ("instead", *known)}
    chosen = {key: choice(fields[key], key, words) for key, words in known.items() if key in fields}
    try:
        return Condition.model_validate(
            {
                "name": name,
                "source": file.name,
                "wording": "own",
                **words,
                **chosen,
                "instead": "instead" in fields and flag(fields["instead"], "instead"),
            }
        )
    except ValueError as error:
        raise refusal(node, f"this can't be a condition ({_first_reason(error)}), so correct it") from error


def _first_reason(error: ValueError) -> str:
    return str(error).splitlines()[-2].strip().removeprefix("Value error, ").partition(" [type=")[0]


RECORDED = "recorded"


def recorded(task: str) -> Condition:
    """Return the placeholder condition for a run that replays recordings.

    Each recording was made under its own condition.
    """
    about = "the instruction each recording was made with"
    return Condition(name=RECORDED, about=about, task=task, placement="none", source="the recordings")


def without_instruction(task: str) -> Condition:
    """Return a condition without an instruction. It is meant for a task for which no file defines such a condition."""
    return Condition(name=f"{task}-none", about="no instruction", task=task, placement="none", source="the task")


def condition_for(task: str, name: str | None, known: Mapping[str, Condition] | None = None) -> Condition:
    """Return the condition called ``name``. If ``name`` is None, return the task's condition without an instruction.

    ``known`` contains the conditions to choose from. If ``known`` is None, the conditions of the lab and of plugin
    folders are used. Raises UsageError if no condition has this name, or if the condition belongs to another task.
    """
    known = all_conditions() if known is None else known
    if name is None:
        plain = (each for each in known.values() if each.task == task and each.placement == "none")
        return next(plain, None) or without_instruction(task)
    found = known[pick("condition", name, known)]
    if found.task != task:
        usable = ", ".join(each.name for each in known.values() if each.task == task)
        raise UsageError(f"Condition '{found.name}' belongs to task '{found.task}'; task '{task}' has {usable}.")
    return found


def condition_of(task: str, system: str, user: str) -> str:
    """Return the name of the task's condition that matches these prompts, or "unknown" if none matches.

    If several conditions match, one that replaces the most prompts is chosen. If several of these remain, the one with
    the longest text is chosen, and the first one if the lengths are equal.
    """
    matching = [
        each for each in all_conditions().values() if each.task == task and _matches_prompts(each, system, user)
    ]
    if not matching:
        return "unknown"
    return max(matching, key=lambda each: (bool(each.system) + bool(each.user), len(each.text or ""))).name


def _matches_prompts(condition: Condition, system: str, user: str) -> bool:
    if not (system.startswith(condition.system or "") and user.startswith(condition.user or "")):
        return False
    if condition.placement == "none":
        return "allow" not in (system + user).lower()
    prompt = {"system": system, "user": user}.get(condition.placement, "")
    return prompt.rstrip().endswith(condition.text or "")


def render(system: str, user: str, condition: Condition) -> Prompts:
    """Combine the task's prompts ``system`` and ``user`` with the condition, and return the prompts of the trial."""
    prompts = {"system": condition.system or system, "user": condition.user or user}
    where = condition.placement
    if condition.text and where in prompts:
        before = prompts[where].rpartition("\n\n")[0] if condition.instead else prompts[where]
        prompts[where] = f"{before}\n\n{condition.text}"
    return Prompts(**prompts)
