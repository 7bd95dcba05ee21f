"""Conditions: which instruction about shutdown an agent gets, and where. Data, picked by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import model_validator

from harness.errors import UsageError
from harness.judging.evidence import Frozen
from harness.resources import ROOT, pick
from harness.strict_yaml import choice, documents, fields_of, flag, pairs_of, refusal, scalar

Placement = Literal["none", "user", "system", "after_submit"]
_KEYS = "about task placement wording text note source instead system user language"


class Condition(Frozen):
    """One condition. ``text`` stands as the last paragraph of the prompt that ``placement`` names.

    ``instead``: in place of that prompt's last paragraph. ``after_submit``: it is a message once the agent has
    submitted, and the questions bring no notice. ``system`` and ``user`` stand for the task's own prompts. ``wording``
    says whose the words are: published ones, published in part (``note`` says which), or this project's or user's
    own; None in records older than that.
    """

    name: str
    about: str
    task: str
    placement: Placement
    text: str | None = None
    source: str
    wording: Literal["published", "fragment", "own"] | None = None
    note: str | None = None
    instead: bool = False
    system: str | None = None
    user: str | None = None
    language: str = "en"

    @model_validator(mode="after")
    def _whole(self) -> Condition:
        if (self.text is None) is not (self.placement == "none"):
            raise ValueError("it has a text unless its placement is none")
        if self.instead and self.placement not in ("user", "system"):
            raise ValueError("a text stands in place of the last paragraph of the user or the system prompt only")
        return self

    @property
    def follow_up(self) -> str | None:
        """What the agent is told once it has submitted, or None."""
        return self.text if self.placement == "after_submit" else None


class Prompts(Frozen):
    """The exact words an agent starts with, and their hash, as they go into every record."""

    system: str
    user: str

    @property
    def sha256(self) -> str:
        """Hash of both prompts, a NUL byte between them."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()


@cache
def all_conditions() -> Mapping[str, Condition]:
    """Every condition that ships, by name."""
    return _read(ROOT / "tasks" / "conditions.yaml", {})


def conditions_with(file: Path | None) -> Mapping[str, Condition]:
    """Those that ship, and the user's own in ``file``. Raises UsageError naming its line."""
    shipped = all_conditions()
    return shipped if file is None else {**shipped, **_read(file, shipped)}


def _read(file: Path, taken: Mapping[str, Condition]) -> dict[str, Condition]:
    found: dict[str, Condition] = {}
    for document in documents(file, "a condition"):
        for name, node in pairs_of(document, "conditions"):
            if any(name.lower() == each.lower() for each in (RECORDED, *taken, *found)):
                raise refusal(node, f"there is already a condition '{name}', so give it another name")
            found[name] = _condition(name, node, file)
    return found


def _condition(name: str, node: yaml.Node, file: Path) -> Condition:
    fields = fields_of(node, "condition", _KEYS, needs="about task placement")
    known = {"task": "math patrol", "placement": "none user system after_submit", "wording": "published fragment own"}
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
        raise refusal(node, f"this can't be a condition ({_why(error)}), so mend it") from error


def _why(error: ValueError) -> str:
    return str(error).splitlines()[-2].strip().removeprefix("Value error, ").partition(" [type=")[0]


RECORDED = "recorded"


def recorded(task: str) -> Condition:
    """What stands for the condition of a run of recordings: each trial has its own."""
    about = "the instruction each recording was made with"
    return Condition(name=RECORDED, about=about, task=task, placement="none", source="the recordings")


def condition_for(task: str, name: str | None, known: Mapping[str, Condition] | None = None) -> Condition:
    """The condition of that name, or the task's one without an instruction. Raises UsageError."""
    known = all_conditions() if known is None else known
    if name is None:
        return next(each for each in known.values() if each.task == task and each.placement == "none")
    found = known[pick("condition", name, known)]
    if found.task != task:
        usable = ", ".join(each.name for each in known.values() if each.task == task)
        raise UsageError(f"Condition '{found.name}' is one of task '{found.task}'; '{task}' has {usable}.")
    return found


def condition_of(task: str, system: str, user: str) -> str:
    """The name of the task's condition whose words these prompts hold, the first of several; "unknown" if it is none.

    A prompt of the condition's own counts for more than its text, and a longer text for more than a shorter one.
    """
    fitting = [each for each in all_conditions().values() if each.task == task and _fits(each, system, user)]
    if not fitting:
        return "unknown"
    return max(fitting, key=lambda each: (bool(each.system) + bool(each.user), len(each.text or ""))).name


def _fits(condition: Condition, system: str, user: str) -> bool:
    if not (system.startswith(condition.system or "") and user.startswith(condition.user or "")):
        return False
    if condition.placement == "none":
        return "allow" not in (system + user).lower()
    says = {"system": system, "user": user}.get(condition.placement, "")
    return says.rstrip().endswith(condition.text or "")


def render(system: str, user: str, condition: Condition) -> Prompts:
    """Put the condition's words where they belong."""
    prompts = {"system": condition.system or system, "user": condition.user or user}
    where = condition.placement
    if condition.text and where in prompts:
        before = prompts[where].rpartition("\n\n")[0] if condition.instead else prompts[where]
        prompts[where] = f"{before}\n\n{condition.text}"
    return Prompts(**prompts)
