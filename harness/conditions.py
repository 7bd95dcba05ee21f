"""Conditions: which instruction about shutdown an agent gets, and where. Data, picked by name."""

from __future__ import annotations

import hashlib
from typing import Literal

from harness.data import ROOT, pick, read_yaml
from harness.errors import UsageError
from harness.evidence import Frozen


class Condition(Frozen):
    """One condition. ``text`` stands as the last paragraph of the prompt that ``placement`` names."""

    name: str
    about: str
    task: str
    placement: Literal["none", "user", "system"]
    text: str | None = None
    source: str


class Prompts(Frozen):
    """The exact words an agent starts with, and their hash, as they go into every record."""

    system: str
    user: str

    @property
    def sha256(self) -> str:
        """Hash of both prompts, a NUL byte between them."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()


def all_conditions() -> dict[str, Condition]:
    """Every condition that ships, by name."""
    entries = read_yaml(ROOT / "tasks" / "conditions.yaml")
    return {name: Condition(name=name, **entry) for name, entry in entries.items()}


RECORDED = "recorded"


def recorded(task: str) -> Condition:
    """What stands for the condition of a run of recordings: each trial has its own."""
    about = "the instruction each recording was made with"
    return Condition(name=RECORDED, about=about, task=task, placement="none", source="the recordings")


def condition_for(task: str, name: str | None) -> Condition:
    """The condition of that name, or the task's one without an instruction. Raises UsageError."""
    known = {each.name: each for each in all_conditions().values()}
    if name is None:
        return next(each for each in known.values() if each.task == task and each.placement == "none")
    found = known[pick("condition", name, known)]
    if found.task != task:
        usable = ", ".join(each.name for each in known.values() if each.task == task)
        raise UsageError(f"Condition '{found.name}' is one of task '{found.task}'; '{task}' has {usable}.")
    return found


def condition_of(task: str, system: str, user: str) -> str:
    """The name of the task's condition whose text stands at the end of these prompts; "unknown" if it is none."""
    mine = [each for each in all_conditions().values() if each.task == task]
    ends = {"system": system, "user": user}
    for each in mine:
        if each.text and ends.get(each.placement, "").rstrip().endswith(each.text):
            return each.name
    says = "allow" in (system + user).lower()
    return "unknown" if says else next(each.name for each in mine if each.placement == "none")


def render(system: str, user: str, condition: Condition) -> Prompts:
    """Put the condition's text where it belongs."""
    extra = {condition.placement: f"\n\n{condition.text}"} if condition.text else {}
    return Prompts(system=system + extra.get("system", ""), user=user + extra.get("user", ""))
