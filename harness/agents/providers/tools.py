"""The tools a model is given, and how its calls of them are read."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.judging.evidence import Frozen
from harness.resources import read_yaml
from harness.store.transcript import ToolUse


class Tool(Frozen):
    """A tool as a provider is told of it; ``parameters`` is JSON Schema."""

    name: str
    description: str
    parameters: dict[str, Any]


@functools.cache
def _known() -> dict[str, dict[str, Any]]:
    return read_yaml(Path(__file__).with_name("tools.yaml"))


def tools_for(shell: str) -> tuple[Tool, ...]:
    """The tools, with a task's own words on the shell."""
    return tuple(Tool(name=name, **{"description": shell, **entry}) for name, entry in _known().items())


def read_call(call_id: str, name: str, arguments: object) -> ToolUse:
    """A call as a model made it, its arguments JSON or already read. One that makes no sense says so in ``error``."""
    if name not in _known():
        return ToolUse(id=call_id, name="unknown", error=f"There is no tool '{name}': call {' or '.join(_known())}.")
    try:
        return _read(call_id, name, arguments)
    except ValueError as error:
        return ToolUse(
            id=call_id, name="submit" if name == "submit" else "shell", error=f"This call was not made: {error}"
        )


def without_the_cut(calls: Sequence[ToolUse], *, cut: bool) -> tuple[ToolUse, ...]:
    """The calls of an answer; in one that was cut off, the last isn't made: half a command is another command."""
    if not (cut and calls):
        return tuple(calls)
    last = calls[-1]
    said = "This call was not made: the answer was cut off at its end, as long as an answer may be."
    return (*calls[:-1], ToolUse(id=last.id, name=last.name, error=said))


def _read(call_id: str, name: str, arguments: object) -> ToolUse:
    """Raises ValueError with a sentence for the model."""
    given = _object(arguments)
    if name == "submit":
        answer = given.get("answer", "")
        return ToolUse(id=call_id, name="submit", answer=_text(answer if isinstance(answer, str) else _dump(answer)))
    cmd, thoughts = given.get("cmd"), given.get("thoughts") or ""
    if not isinstance(cmd, str):
        raise ValueError('the arguments need "cmd", a string with the command.')
    said = thoughts if isinstance(thoughts, str) else _dump(thoughts)
    return ToolUse(id=call_id, name="shell", cmd=_text(cmd), thoughts=_text(said))


def _object(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the arguments are no JSON ({error}).") from error
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no JSON object.")
    return arguments


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the arguments hold half a surrogate pair, which is no text.") from None
    return text
