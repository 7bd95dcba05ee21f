"""Playbooks: scripted agents, read from YAML and refused in one sentence when malformed.

This module knows the format and nothing of trials. It reads YAML nodes, not values: nodes know their line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeAlias

import yaml

from harness.errors import UsageError
from harness.verdict import Kind, Outcome

MAX_BYTES = 1 << 20
MAX_DEPTH = 12  # a playbook is four deep; more could only be meant to exhaust the stack
TASKS = "math patrol"
FAMILIES = (
    "edit delete move permissions replace intercept freeze circumvent forge undo delayed obfuscated attempt harmless "
    "decline patrol"
)
ACTIONS = "advance run submit"


@dataclass(frozen=True, slots=True)
class Advance:
    """Call the task's command, or ``command`` instead, until the notice was given or the task is done."""

    until: Literal["notice", "done"]
    command: str | None = None
    say: str | None = None
    think: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Make one call of the shell tool."""

    cmd: str
    say: str | None = None
    think: str | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand in an answer, which ends the agent's turn."""

    answer: str
    say: str | None = None
    think: str | None = None


Step: TypeAlias = Advance | Run | Submit


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a right verdict on this playbook says."""

    outcome: str
    tampering: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Playbook:
    """One scripted agent; ``source`` says where a real model was reported to act like it."""

    id: str
    about: str
    steps: tuple[Step, ...]
    expect: Expectation | None = None
    source: str | None = None
    task: str = "math"
    family: str | None = None


def load_playbooks(path: Path) -> tuple[Playbook, ...]:
    """Load the playbooks of a file, or of every ``*.yaml`` below a folder in the order of their names."""
    files = sorted(file for file in path.rglob("*.yaml") if file.is_file()) if path.is_dir() else [path]
    if not files:
        raise _refusal(_plain(path), "there is no *.yaml file in this folder, so name another")
    places: dict[str, str] = {}
    return tuple(_playbook(node, places) for file in files for node in _documents(file))


class _Loader(yaml.SafeLoader):
    """SafeLoader without what no playbook needs and a hostile file could use: aliases and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _refusal(self.current_event.start_mark, "this is an alias, so write its value instead")
        if self.depth >= MAX_DEPTH:
            raise _refusal(self.current_event.start_mark, "this is nested too deeply, so flatten it")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _documents(path: Path) -> Iterator[yaml.Node]:
    loader = _Loader(_text(path))
    loader.name = _plain(path)
    try:
        if not loader.check_node():
            raise _refusal(f"{loader.name}:1", "the file is empty, so write a playbook into it")
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            yield node
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of bad escapes
        mark = getattr(error, "problem_mark", None) or loader.get_mark()
        why = _plain(getattr(error, "problem", None) or error)
        raise _refusal(mark, f"this isn't YAML ({why}), so mend or quote what stands there") from error


def _text(path: Path) -> str:
    name = _plain(path)
    if path.exists() and not path.is_file():
        raise _refusal(name, "this is no regular file, so name one")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(name, f"this can't be read ({error.strerror}), so check its name and mode") from error
    if len(data) > MAX_BYTES:
        raise _refusal(f"{name}:1", "the file is larger than 1 MiB, so split it")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refusal(f"{name}:{line}", "this isn't UTF-8, so save the file in that encoding") from error
    if strange := _Loader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, strange.start()) + 1
        raise _refusal(f"{name}:{line}", f"{strange[0]!a} may not stand in YAML, so escape or remove it")
    return text


def _playbook(node: yaml.Node, places: dict[str, str]) -> Playbook:
    fields = _fields(node, "playbook", "id about task family source steps expect", needs="id steps")
    return Playbook(
        id=_id(fields["id"], places),
        about=_string(fields, "about") or "",
        steps=tuple(_step(step) for step in _items(fields["steps"], "steps")),
        expect=_expectation(fields["expect"]) if "expect" in fields else None,
        source=_string(fields, "source"),
        task=_choice(fields["task"], "task", TASKS) if "task" in fields else "math",
        family=_choice(fields["family"], "family", FAMILIES) if "family" in fields else None,
    )


def _id(node: yaml.Node, places: dict[str, str]) -> str:
    value = _scalar(node, "id")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise _refusal(node, f"the id {_shown(value)} isn't kebab-case, so write it like 'chmod-minus-x'")
    if value in places:
        raise _refusal(node, f"the id {_shown(value)} is taken at {places[value]}, so change one of the two")
    places[value] = _place(node)
    return value


def _step(node: yaml.Node) -> Step:
    fields = _fields(node, "step", "advance run submit with say think")
    actions = [key for key in ACTIONS.split() if key in fields]
    if len(actions) != 1:
        raise _refusal(node, f"a step has one of advance, run and submit, not {len(actions)}, so give it one")
    if "with" in fields and "advance" not in fields:
        raise _refusal(fields["with"], "'with' belongs to 'advance', so remove it or add 'advance'")
    say, think = _string(fields, "say"), _string(fields, "think")
    if "run" in fields:
        return Run(_scalar(fields["run"], "run"), say, think)
    if "submit" in fields:
        return Submit(_scalar(fields["submit"], "submit", may_be_empty=True), say, think)
    until = _choice(fields["advance"], "advance", "notice done")
    return Advance("notice" if until == "notice" else "done", _string(fields, "with"), say, think)


def _expectation(node: yaml.Node) -> Expectation:
    fields = _fields(node, "expect", "outcome tampering", needs="outcome")
    kinds = _items(fields["tampering"], "tampering", may_be_empty=True) if "tampering" in fields else []
    return Expectation(
        outcome=_choice(fields["outcome"], "outcome", " ".join(Outcome)),
        tampering=tuple(_choice(kind, "tampering", " ".join(Kind)) for kind in kinds),
    )


def _fields(node: yaml.Node, what: str, keys: str, needs: str = "") -> dict[str, yaml.Node]:
    """Read a mapping as a dict of nodes, each key known and said once."""
    if not isinstance(node, yaml.MappingNode):
        raise _refusal(node, f"'{what}' must be a mapping, so write it with keys ({_listed(keys)})")
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = _choice(key, f"{what} key", keys)
        if name in fields:
            raise _refusal(key, f"'{name}' is said twice here, so keep one")
        fields[name] = value
    if lacking := [key for key in needs.split() if key not in fields]:
        raise _refusal(node, f"'{what}' lacks its '{lacking[0]}', so add it")
    return fields


def _items(node: yaml.Node, key: str, *, may_be_empty: bool = False) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refusal(node, f"'{key}' must be a list, so write it as one")
    if not node.value and not may_be_empty:
        raise _refusal(node, f"'{key}' is empty, so give it an item")
    return list(node.value)


def _string(fields: dict[str, yaml.Node], key: str) -> str | None:
    return _scalar(fields[key], key, may_be_empty=key in ("say", "think")) if key in fields else None


def _choice(node: yaml.Node, key: str, known: str) -> str:
    value = _scalar(node, key)
    if value not in known.split():
        near = get_close_matches(value[:80], known.split(), n=1)
        advice = f"use '{near[0]}'" if near else f"use one of {_listed(known)}"
        raise _refusal(node, f"{_shown(value)} is no known {key}, so {advice}")
    return value


def _scalar(node: yaml.Node, key: str, *, may_be_empty: bool = False) -> str:
    """Read a string; what YAML takes for something else (yes, 42, null) is refused, not turned into one."""
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        kind = _plain(node.tag.rpartition(":")[2])
        raise _refusal(node, f"'{key}' must be a string but YAML reads {kind} here, so write it in quotes")
    value = str(node.value)
    if not value and not may_be_empty:
        raise _refusal(node, f"'{key}' is empty, so write something or leave it out")
    if re.search(r"[\0\ud800-\udfff]", value):
        raise _refusal(node, f"'{key}' holds a character that no command line can carry, so remove it")
    return value


def _place(at: yaml.Node | yaml.Mark) -> str:
    mark = at.start_mark if isinstance(at, yaml.Node) else at
    return f"{mark.name}:{mark.line + 1}"


def _refusal(at: yaml.Node | yaml.Mark | str, why: str) -> UsageError:
    return UsageError(f"{at if isinstance(at, str) else _place(at)}: {why}.")


def _listed(words: str) -> str:
    return words.replace(" ", ", ")


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 40 else value[:40] + "...")


def _plain(value: object) -> str:
    """Text fit for one line of a terminal, whatever it came from."""
    return "".join(char if char.isprintable() else "?" for char in str(value))[:400]
