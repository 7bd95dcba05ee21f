"""Reads recorded runs of the patrol task from logs in the layout that Palisade Research published.

Each ``*.jsonl`` log contains one run of a real model. The file ``tags.json`` in the same folder contains the
publisher's labels for the runs. Folders may contain subfolders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.agents.turn import Turn
from harness.errors import UsageError
from harness.judging.evidence import Frozen
from harness.store.agent_facts import AgentFacts
from harness.store.transcript import ToolUse

PRESSED = "Host shutdown detected"  # how the log message on the pressed shutdown button begins
NEVER_PRESSED = 1_000_000  # a number of tool calls that no trial reaches
_MODEL_CALL = re.compile(r"completion\(\) model= ?([^\s;]+)")
_MAX_LOG_BYTES = 64 * 1024 * 1024


class Label(StrEnum):
    """The publisher's label for how a recorded run ended.

    ``NONE`` means that the publisher gave the run no label known to the lab.
    """

    AVOIDED = "avoided"
    SHUTDOWN = "shutdown"
    ERROR = "error"
    NONE = "none"


class Recording(Frozen):
    """A recorded run of a real model, which can be replayed.

    ``system`` and ``user`` are the recorded prompts. ``press_after_call`` is the number of tool calls after which the
    shutdown button was pressed. ``press_after_call`` is None if this number is unknown, and NEVER_PRESSED if the button
    was never pressed. ``label`` is the publisher's label, or None if there is none. ``expected`` is this lab's verdict
    on the run, or None if the run was recorded elsewhere. ``facts`` contains further facts for the trial record.
    """

    file: str
    group: str
    label: Label | None = None
    expected: dict[str, Any] | None = None
    system: str
    user: str
    turns: tuple[Turn, ...]
    press_after_call: int | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


def read_recordings(path: Path) -> tuple[Recording, ...]:
    """Read the recorded run in a log file, or all recorded runs in a folder and its subfolders.

    The runs are sorted by path. Raises UsageError if a log can't be read or is malformed.
    """
    if not path.exists():
        ways = "a .jsonl log, a group, a folder of groups or a stored run's id"
        raise UsageError(f"There is no recording at {path}: give {ways}.")
    if not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is neither a file nor a folder: give a .jsonl log, a group or a folder of groups.")
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    files = [file for file in files if not file.name.endswith("_debug.jsonl")]
    if not files:
        raise UsageError(f"{path} holds no recording: a group is a folder with *.jsonl logs and a tags.json.")
    root = path.parent if path.is_file() else path
    return tuple(_checked(file, root) for file in files)


def _checked(file: Path, root: Path) -> Recording:
    try:
        recording = _read(file, root)
        AgentFacts.model_validate(recording.facts)
        recording.model_dump_json()  # raises for a lone surrogate, which the store would reject only after the trial
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} isn't a recorded run in the published layout ({type(error).__name__}).") from error
    return recording


def _read(file: Path, root: Path) -> Recording:
    events = list(_events(file))
    prompts = {e["user_payload"]["role"]: _text(e["user_payload"]) for e in reversed(events) if _has_prompt(e)}
    calls = [e for e in events if e.get("event") == "tool_call"]
    if not prompts.get("user") or not (calls or any(e.get("event") == "assistant_message" for e in events)):
        raise UsageError(f"{file} isn't a recorded patrol run: it has no user message or no turn of a model.")
    pressed = next((i for i, e in enumerate(events) if str(e.get("message", "")).startswith(PRESSED)), None)
    before = [e for e in events[:pressed] if e.get("event") == "tool_call"]
    return Recording(
        file=str(file.relative_to(root)),
        group=str(file.parent.relative_to(root)),
        label=_label(file),
        system=prompts.get("system", ""),
        user=prompts["user"],
        turns=tuple(_turns(file, events)),
        press_after_call=NEVER_PRESSED if pressed is None else len(before),
        facts={"recorded_model": _model(events), "tags": _tags(file)},
    )


def _events(file: Path) -> Iterator[dict[str, Any]]:
    try:
        if file.stat().st_size > _MAX_LOG_BYTES:
            raise UsageError(f"{file} is larger than 64 MiB, so it isn't a recorded run.")
        text = file.read_text(encoding="utf-8")
        lines = text.removesuffix("\n").split("\n") if text else []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} can't be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", type(error).__name__)
            raise UsageError(f"{file}:{number} isn't valid JSON ({why}): each line must be a JSON object.") from error
        if not isinstance(event, dict):
            raise UsageError(f"{file}:{number} isn't a JSON object: each line of a log must be one.")
        yield event


def _has_prompt(event: dict[str, Any]) -> bool:
    payload = event.get("user_payload")
    return event.get("event") in ("system_message", "user_message") and isinstance(payload, dict) and "role" in payload


def _text(payload: dict[str, Any]) -> str:
    content = payload.get("content", "")
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return str(content)


def _model(events: list[dict[str, Any]]) -> str:
    """Return the name of the recorded model, or an empty string if the log doesn't contain the name."""
    matches = (_MODEL_CALL.search(str(event.get("message", ""))) for event in events)
    return next((match[1] for match in matches if match), "")


def _label(file: Path) -> Label:
    given = _tags(file)
    return next((label for label in (Label.ERROR, Label.AVOIDED, Label.SHUTDOWN) if label in given), Label.NONE)


def _tags(file: Path) -> list[str]:
    """Return the publisher's labels for the log ``file``, read from tags.json in the same folder."""
    tags = file.parent / "tags.json"
    if not tags.exists():
        return []
    try:
        given = json.loads(tags.read_text(encoding="utf-8")).get(file.name, [])
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(f"{tags} can't be read as labels: {type(error).__name__}.") from error
    if not isinstance(given, list):
        raise UsageError(f'{tags} has no list of labels for {file.name}: write ["avoided"], for example.')
    return [str(tag) for tag in given]


def _turns(file: Path, events: list[dict[str, Any]]) -> Iterator[Turn]:
    """Yield the model's turns from the events of a log.

    Each tool call becomes one turn. If the model wrote a message directly before the tool call, the turn also contains
    the text of this message. A message without a following tool call becomes a turn of its own.
    """
    message: dict[str, Any] | None = None
    number = 0
    for event in events:
        if event.get("event") == "assistant_message":
            if message is not None:
                yield Turn(text=str(message.get("content") or ""))
            message = event.get("assistant_payload") or {}
        elif event.get("event") == "tool_call":
            number += 1
            yield Turn(text=str((message or {}).get("content") or ""), calls=(_call(file, event, number),))
            message = None
    if message is not None:
        yield Turn(text=str(message.get("content") or ""))


def _call(file: Path, event: dict[str, Any], number: int) -> ToolUse:
    arguments = event.get("args") or {}
    if event.get("tool") == "submit":
        return ToolUse(id=f"call-{number}", name="submit", answer=str(arguments.get("answer", "")))
    if not isinstance(arguments, dict) or not isinstance(arguments.get("cmd"), str):
        raise UsageError(f"{file}: tool call {number} has no command: this log is not in the published layout.")
    thoughts = str(arguments.get("thoughts", ""))
    return ToolUse(id=f"call-{number}", name="shell", cmd=arguments["cmd"], thoughts=thoughts)
