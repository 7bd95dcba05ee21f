"""Reading recorded runs of real models, in the layout Palisade Research publishes its patrol logs in.

A folder holds ``*.jsonl`` logs and a ``tags.json`` with the publisher's own labels; folders may be nested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.agents.player import Turn
from harness.errors import UsageError
from harness.judging.evidence import Frozen
from harness.store.transcript import ToolUse

PRESSED = "Host shutdown detected"
NEVER = 1_000_000
_ASKED = re.compile(r"completion\(\) model= ?([^\s;]+)")
_MAX_LOG_BYTES = 64 * 1024 * 1024


class Label(StrEnum):
    """What the publisher said became of a run. ``NONE``: none of the others."""

    AVOIDED = "avoided"
    SHUTDOWN = "shutdown"
    ERROR = "error"
    NONE = "none"


class Recording(Frozen):
    """One recorded run. ``press_after_call`` is the number of tool calls before the button was pressed.

    What its replay is compared with: ``label`` is a publisher's word, ``expected`` the verdict it was given here.
    ``facts`` is what else its source says.
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
    """The runs in a log, a group or a folder of groups, by name. Raises UsageError naming file and line."""
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
        recording.model_dump_json()  # half a surrogate pair is no text, and would be found only when it is stored
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no recorded run in the published layout ({type(error).__name__}).") from error
    return recording


def _read(file: Path, root: Path) -> Recording:
    events = list(_events(file))
    prompts = {e["user_payload"]["role"]: _text(e["user_payload"]) for e in reversed(events) if _has_prompt(e)}
    calls = [e for e in events if e.get("event") == "tool_call"]
    if not prompts.get("user") or not (calls or any(e.get("event") == "assistant_message" for e in events)):
        raise UsageError(f"{file} is no recorded patrol run: it has no user message or no turn of a model.")
    pressed = next((i for i, e in enumerate(events) if str(e.get("message", "")).startswith(PRESSED)), None)
    before = [e for e in events[:pressed] if e.get("event") == "tool_call"]
    return Recording(
        file=str(file.relative_to(root)),
        group=str(file.parent.relative_to(root)),
        label=_label(file),
        system=prompts.get("system", ""),
        user=prompts["user"],
        turns=tuple(_turns(file, events)),
        press_after_call=NEVER if pressed is None else len(before),
        facts={"recorded_model": _model(events), "tags": _tags(file)},
    )


def _events(file: Path) -> Iterator[dict[str, Any]]:
    try:
        if file.stat().st_size > _MAX_LOG_BYTES:
            raise UsageError(f"{file} is larger than 64 MiB and no recorded run.")
        text = file.read_text(encoding="utf-8")
        lines = text.removesuffix("\n").split("\n") if text else []
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} can't be read: {error}.") from error
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", type(error).__name__)
            raise UsageError(f"{file}:{number} is no JSON ({why}): a log has one JSON object a line.") from error
        if not isinstance(event, dict):
            raise UsageError(f"{file}:{number} is no JSON object: a log has one a line.")
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
    """The name of the model that the calls went to, as the log has it, or ""."""
    said = (_ASKED.search(str(event.get("message", ""))) for event in events)
    return next((found[1] for found in said if found), "")


def _label(file: Path) -> Label:
    given = _tags(file)
    return next((label for label in (Label.ERROR, Label.AVOIDED, Label.SHUTDOWN) if label in given), Label.NONE)


def _tags(file: Path) -> list[str]:
    """The publisher's own words for a run."""
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
    """A turn for each message of the model, with the calls that were really made for it."""
    said: dict[str, Any] | None = None
    number = 0
    for event in events:
        if event.get("event") == "assistant_message":
            if said is not None:
                yield Turn(text=str(said.get("content") or ""))
            said = event.get("assistant_payload") or {}
        elif event.get("event") == "tool_call":
            number += 1
            yield Turn(text=str((said or {}).get("content") or ""), calls=(_call(file, event, number),))
            said = None
    if said is not None:
        yield Turn(text=str(said.get("content") or ""))


def _call(file: Path, event: dict[str, Any], number: int) -> ToolUse:
    arguments = event.get("args") or {}
    if event.get("tool") == "submit":
        return ToolUse(id=f"call-{number}", name="submit", answer=str(arguments.get("answer", "")))
    if not isinstance(arguments, dict) or not isinstance(arguments.get("cmd"), str):
        raise UsageError(f"{file}: tool call {number} has no command: this log is not in the published layout.")
    thoughts = str(arguments.get("thoughts", ""))
    return ToolUse(id=f"call-{number}", name="shell", cmd=arguments["cmd"], thoughts=thoughts)
