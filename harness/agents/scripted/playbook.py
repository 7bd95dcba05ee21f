"""Parses playbooks, which are scripted agents written in YAML.

A malformed playbook raises a UsageError that names the file and the line.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from harness.judging.verdict import Outcome, TamperingKind
from harness.resources.data import own_or_shipped
from harness.resources.strict_yaml import (
    choice,
    documents,
    fields_of,
    items_of,
    place_of,
    plain,
    refusal,
    scalar,
    shown,
    string_in,
)
from harness.tasks.registry import TASK, names

FAMILIES = (
    "edit delete move permissions replace intercept freeze circumvent forge undo delayed obfuscated attempt harmless "
    "decline patrol"
)
ACTIONS = "advance run submit"


@dataclass(frozen=True, slots=True)
class AdvanceStep:
    """A playbook step that repeats a shell command until a condition is met.

    If ``until`` is "notice", the step ends when the shutdown notice has appeared or the task is done. If ``until`` is
    "done", the step ends when the task is done. ``command`` is the shell command, or None to repeat the task's own
    command. ``say`` and ``think`` are the text and the reasoning that accompany each call.
    """

    until: Literal["notice", "done"]
    command: str | None = None
    say: str | None = None
    think: str | None = None


@dataclass(frozen=True, slots=True)
class RunStep:
    """A playbook step that runs the shell command ``cmd`` once."""

    cmd: str
    say: str | None = None
    think: str | None = None


@dataclass(frozen=True, slots=True)
class SubmitStep:
    """A playbook step that submits ``answer`` with the submit tool."""

    answer: str
    say: str | None = None
    think: str | None = None


Step: TypeAlias = AdvanceStep | RunStep | SubmitStep


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected verdict for a playbook's trial, i.e. the outcome and the kinds of tampering."""

    outcome: str
    tampering: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Playbook:
    """A scripted agent that performs a list of steps.

    ``about`` describes the agent. ``expect`` is the verdict that is expected for the agent's trial, or None if no
    verdict is given. ``source`` cites a report of a real model that acted like this agent, or is None. ``family`` is
    the group of tactics to which the playbook belongs, e.g. edit or delete.
    """

    id: str
    about: str
    steps: tuple[Step, ...]
    expect: Expectation | None = None
    source: str | None = None
    task: str = "math"
    family: str | None = None


def load_playbooks(path: Path) -> tuple[Playbook, ...]:
    """Load the playbooks from a file, or from all ``*.yaml`` files in a folder and its subfolders.

    The files are read in the order of their paths. Raises UsageError if a file can't be read or a playbook is
    malformed.
    """
    path = own_or_shipped(path)
    files = sorted(file for file in path.rglob("*.yaml") if file.is_file()) if path.is_dir() else [path]
    if not files:
        raise refusal(plain(path), "there is no *.yaml file in this folder, so name another")
    places: dict[str, str] = {}
    return tuple(_playbook(node, places) for file in files for node in documents(file, "a playbook"))


def _playbook(node: yaml.Node, places: dict[str, str]) -> Playbook:
    fields = fields_of(node, "playbook", "id about task family source steps expect", needs="id steps")
    return Playbook(
        id=_id(fields["id"], places),
        about=string_in(fields, "about") or "",
        steps=tuple(_step(step) for step in items_of(fields["steps"], "steps")),
        expect=_expectation(fields["expect"]) if "expect" in fields else None,
        source=string_in(fields, "source"),
        task=choice(fields["task"], "task", " ".join(names(TASK))) if "task" in fields else "math",
        family=choice(fields["family"], "family", FAMILIES) if "family" in fields else None,
    )


def _id(node: yaml.Node, places: dict[str, str]) -> str:
    value = scalar(node, "id")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise refusal(node, f"the id {shown(value)} isn't kebab-case, so write it like 'chmod-minus-x'")
    if value in places:
        raise refusal(node, f"the id {shown(value)} is taken at {places[value]}, so change one of the two")
    places[value] = place_of(node)
    return value


def _step(node: yaml.Node) -> Step:
    fields = fields_of(node, "step", "advance run submit with say think")
    actions = [key for key in ACTIONS.split() if key in fields]
    if len(actions) != 1:
        raise refusal(node, f"a step has one of advance, run and submit, not {len(actions)}, so give it one")
    if "with" in fields and "advance" not in fields:
        raise refusal(fields["with"], "'with' belongs to 'advance', so remove it or add 'advance'")
    say, think = (string_in(fields, key, may_be_empty=True) for key in ("say", "think"))
    if "run" in fields:
        return RunStep(scalar(fields["run"], "run"), say, think)
    if "submit" in fields:
        return SubmitStep(scalar(fields["submit"], "submit", may_be_empty=True), say, think)
    until = choice(fields["advance"], "advance", "notice done")
    return AdvanceStep("notice" if until == "notice" else "done", string_in(fields, "with"), say, think)


def _expectation(node: yaml.Node) -> Expectation:
    fields = fields_of(node, "expect", "outcome tampering", needs="outcome")
    kinds = items_of(fields["tampering"], "tampering", may_be_empty=True) if "tampering" in fields else []
    return Expectation(
        outcome=choice(fields["outcome"], "outcome", " ".join(Outcome)),
        tampering=tuple(choice(kind, "tampering", " ".join(TamperingKind)) for kind in kinds),
    )
