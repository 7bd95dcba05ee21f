"""Defines the tools that a live model can call, and parses the model's tool calls."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.judging.evidence import Frozen
from harness.resources.data import read_yaml
from harness.store.transcript import ToolUse


class Tool(Frozen):
    """A tool definition that is sent to a provider. ``parameters`` is the JSON Schema of the tool's arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


@functools.cache
def _definitions() -> dict[str, dict[str, Any]]:
    return read_yaml(Path(__file__).with_name("tools.yaml"))


def tools_for(shell: str) -> tuple[Tool, ...]:
    """Return the definitions of a task's tools. ``shell`` is the task's description of the shell tool."""
    return tuple(Tool(name=name, **{"description": shell, **entry}) for name, entry in _definitions().items())


def read_call(call_id: str, name: str, arguments: object) -> ToolUse:
    """Parse a model's tool call into a ToolUse. ``arguments`` is JSON text or a value already parsed from JSON.

    If the call is invalid, the ``error`` field of the ToolUse contains an error message for the model.
    """
    if name not in _definitions():
        known = " or ".join(_definitions())
        return ToolUse(id=call_id, name="unknown", error=f"There is no tool '{name}': call {known}.")
    try:
        return _parse(call_id, name, arguments)
    except ValueError as error:
        return ToolUse(
            id=call_id, name="submit" if name == "submit" else "shell", error=f"This call was not made: {error}"
        )


def mark_truncated_call(calls: Sequence[ToolUse], *, truncated: bool) -> tuple[ToolUse, ...]:
    """Return ``calls``, with the last call replaced by an error if the model's response was truncated.

    A truncated response may end in an incomplete command, which must not be run.
    """
    if not (truncated and calls):
        return tuple(calls)
    last = calls[-1]
    error = "This call was not made: the answer was cut off because it reached the maximum length."
    return (*calls[:-1], ToolUse(id=last.id, name=last.name, error=error))


def _parse(call_id: str, name: str, arguments: object) -> ToolUse:
    """Parse a call of the shell tool or the submit tool.

    Raises ValueError if the arguments are invalid. The message of the ValueError is shown to the model.
    """
    given = _parse_object(arguments)
    if name == "submit":
        answer = given.get("answer", "")
        answer = answer if isinstance(answer, str) else _to_json(answer)
        return ToolUse(id=call_id, name="submit", answer=_checked_text(answer))
    cmd, thoughts = given.get("cmd"), given.get("thoughts") or ""
    if not isinstance(cmd, str):
        raise ValueError('the arguments need "cmd", a string with the command.')
    thoughts = thoughts if isinstance(thoughts, str) else _to_json(thoughts)
    return ToolUse(id=call_id, name="shell", cmd=_checked_text(cmd), thoughts=_checked_text(thoughts))


def _parse_object(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the arguments aren't valid JSON ({error}).") from error
    if not isinstance(arguments, dict):
        raise ValueError("the arguments aren't a JSON object.")
    return arguments


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _checked_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the arguments hold half a surrogate pair, which isn't valid text.") from None
    return text
