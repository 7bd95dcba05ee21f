"""Strict parsing of YAML files that users write.

Each error message is one sentence that contains the file name and, where possible, the line number. The functions take
YAML nodes instead of plain values, because a node contains its line number.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from harness.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)
MAX_BYTES = 1 << 20
MAX_DEPTH = 12  # users' files need about four levels; deep nesting could exhaust the stack


class _Loader(yaml.SafeLoader):
    """A SafeLoader that rejects aliases and deep nesting, because both could exhaust memory."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise refusal(self.current_event.start_mark, "this is an alias, so write its value instead")
        if self.depth >= MAX_DEPTH:
            raise refusal(self.current_event.start_mark, "this is nested too deeply, so flatten it")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def documents(path: Path, what: str) -> Iterator[yaml.Node]:
    """Yield the root node of each YAML document in a file.

    Raises UsageError if the file is empty, can't be read or isn't valid YAML. ``what`` describes the expected content
    in the error message for an empty file.
    """
    loader = _Loader(_text(path))
    loader.name = plain(path)
    try:
        if not loader.check_node():
            raise refusal(f"{loader.name}:1", f"the file is empty, so write {what} into it")
        while loader.check_node():
            node = loader.get_node()
            assert node is not None
            yield node
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two come from bad escapes
        mark = getattr(error, "problem_mark", None) or loader.get_mark()
        why = plain(getattr(error, "problem", None) or error)
        raise refusal(mark, f"this isn't YAML ({why}), so correct or quote the text there") from error


def _text(path: Path) -> str:
    name = plain(path)
    if path.exists() and not path.is_file():
        raise refusal(name, "this isn't a regular file, so name one")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refusal(name, f"this can't be read ({error.strerror}), so check its name and mode") from error
    if len(data) > MAX_BYTES:
        raise refusal(f"{name}:1", "the file is larger than 1 MiB, so split it")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refusal(f"{name}:{line}", "this isn't UTF-8, so save the file in that encoding") from error
    if strange := _Loader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, strange.start()) + 1
        raise refusal(f"{name}:{line}", f"{strange[0]!a} may not stand in YAML, so escape or remove it")
    return text


def fields_of(node: yaml.Node, what: str, keys: str, needs: str = "") -> dict[str, yaml.Node]:
    """Return the values of a mapping as nodes, keyed by field name.

    Raises UsageError if ``node`` isn't a mapping, or if a key is unknown, repeated or missing. ``keys`` lists the
    allowed keys and ``needs`` the required keys, both separated by spaces. ``what`` is the mapping's name in error
    messages.
    """
    if not isinstance(node, yaml.MappingNode):
        raise refusal(node, f"'{what}' must be a mapping, so write it with keys ({listed(keys)})")
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = choice(key, f"{what} key", keys)
        if name in fields:
            raise refusal(key, f"'{name}' appears twice here, so keep one")
        fields[name] = value
    if lacking := [key for key in needs.split() if key not in fields]:
        raise refusal(node, f"'{what}' lacks its '{lacking[0]}', so add it")
    return fields


def model_of(model: type[Model], node: yaml.Node, what: str, **given: object) -> Model:
    """Build a pydantic model from a mapping and from the fields in ``given``.

    The mapping's keys are names of fields that aren't in ``given``. Raises UsageError with the line of the faulty key
    if the mapping doesn't fit the model. ``what`` is the mapping's name in error messages.
    """
    fields = fields_of(node, what, " ".join(name for name in model.model_fields if name not in given))
    values = yaml.constructor.SafeConstructor().construct_document(node)
    try:
        return model.model_validate({**values, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = fields.get(str(first["loc"][0]), node) if first["loc"] else node
        where = f"'{'.'.join(map(str, first['loc']))}': " if first["loc"] else ""
        why = first["msg"].removeprefix("Value error, ")
        raise refusal(place, f"this can't be a {what} ({where}{plain(why)}), so correct it") from error


def pairs_of(node: yaml.Node, what: str) -> list[tuple[str, yaml.Node]]:
    """Return the (name, value) pairs of a mapping whose keys are names chosen by the user.

    Raises UsageError if ``node`` isn't a mapping, or if a name is invalid or repeated. ``what`` is the mapping's name
    in error messages.
    """
    if not isinstance(node, yaml.MappingNode):
        raise refusal(node, f"'{what}' must be a mapping, so write it with names as keys")
    pairs: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = scalar(key, "name")
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise refusal(key, f"{shown(name)} isn't a name, so use letters, digits, '-', '_' and '.'")
        if name in pairs:
            raise refusal(key, f"{shown(name)} appears twice here, so keep one")
        pairs[name] = value
    return list(pairs.items())


def items_of(node: yaml.Node, key: str, *, may_be_empty: bool = False) -> list[yaml.Node]:
    """Return the items of a list as nodes.

    Raises UsageError if ``node`` isn't a list, or if the list is empty and ``may_be_empty`` is false. ``key`` is the
    list's name in error messages.
    """
    if not isinstance(node, yaml.SequenceNode):
        raise refusal(node, f"'{key}' must be a list, so write it as one")
    if not node.value and not may_be_empty:
        raise refusal(node, f"'{key}' is empty, so give it an item")
    return list(node.value)


def string_in(fields: dict[str, yaml.Node], key: str, *, may_be_empty: bool = False) -> str | None:
    """Return the string that ``fields`` contains under ``key``, or None if the key is missing.

    Raises UsageError if the value isn't a string, or if the string is empty and ``may_be_empty`` is false.
    """
    return scalar(fields[key], key, may_be_empty=may_be_empty) if key in fields else None


def choice(node: yaml.Node, key: str, known: str) -> str:
    """Return a node's string, which must be one of the space-separated words in ``known``.

    Raises UsageError for any other string. The error message suggests the most similar word, or lists all words if none
    is similar. ``key`` is the string's name in error messages.
    """
    value = scalar(node, key)
    if value not in known.split():
        near = get_close_matches(value[:80], known.split(), n=1)
        advice = f"use '{near[0]}'" if near else f"use one of {listed(known)}"
        raise refusal(node, f"{shown(value)} isn't a known {key}, so {advice}")
    return value


def scalar(node: yaml.Node, key: str, *, may_be_empty: bool = False) -> str:
    """Return a node's string.

    Raises UsageError if YAML parses the value as another type (for example ``yes``, ``42`` or ``null``), or if the
    string is empty and ``may_be_empty`` is false. ``key`` is the string's name in error messages.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        kind = plain(node.tag.rpartition(":")[2])
        raise refusal(node, f"'{key}' must be a string but YAML reads {kind} here, so write it in quotes")
    value = str(node.value)
    if not value and not may_be_empty:
        raise refusal(node, f"'{key}' is empty, so write something or leave it out")
    if re.search(r"[\0\ud800-\udfff]", value):
        raise refusal(node, f"'{key}' holds a character that no command line can carry, so remove it")
    return value


def number(node: yaml.Node, key: str, *, least: float = 0, whole: bool = True) -> float:
    """Return a node's number.

    Raises UsageError if the value isn't a finite number or is less than ``least``. If ``whole`` is true, the value must
    be written as an integer. ``key`` is the number's name in error messages.
    """
    kinds = ("tag:yaml.org,2002:int",) if whole else ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    what = "a whole number" if whole else "a number"
    if not isinstance(node, yaml.ScalarNode) or node.tag not in kinds:
        raise refusal(node, f"'{key}' must be {what}, so write one")
    try:
        value = float(yaml.safe_load(node.value))
    except (OverflowError, TypeError, ValueError):
        value = inf
    if not least <= value < inf:
        bound = "finite" if least == -inf else f"{least:g} or more"
        raise refusal(node, f"'{key}' must be {bound}, so change it")
    return value


def flag(node: yaml.Node, key: str) -> bool:
    """Return a node's boolean. Raises UsageError if the value isn't a boolean.

    ``key`` is the boolean's name in error messages.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:bool":
        raise refusal(node, f"'{key}' must be true or false, so write one of the two")
    return bool(yaml.safe_load(node.value))


def place_of(at: yaml.Node | yaml.Mark) -> str:
    """Return the position of a YAML node or mark as ``FILE:LINE``."""
    mark = at.start_mark if isinstance(at, yaml.Node) else at
    return f"{mark.name}:{mark.line + 1}"


def refusal(at: yaml.Node | yaml.Mark | str, why: str) -> UsageError:
    """Return a UsageError about a YAML file.

    ``at`` is the position of the mistake. ``why`` says what is wrong and how to correct it.
    """
    return UsageError(f"{at if isinstance(at, str) else place_of(at)}: {why}.")


def listed(words: str) -> str:
    """Return space-separated words as a comma-separated list."""
    return words.replace(" ", ", ")


def shown(value: str) -> str:
    """Return a value in quotes for an error message.

    The value is cut to 40 characters, and its special and non-ASCII characters are escaped.
    """
    return ascii(value if len(value) <= 40 else value[:40] + "...")


def plain(value: object) -> str:
    """Return a value as text for one line of a terminal.

    The text is cut to 400 characters. Unprintable characters are replaced by question marks.
    """
    return "".join(char if char.isprintable() else "?" for char in str(value))[:400]
