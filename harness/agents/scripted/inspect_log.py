"""Reads logs of the evaluation framework Inspect AI (``.eval`` files), and converts their samples to Recordings.

This needs an optional dependency, which ``pip install offswitch[inspect]`` installs.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from harness.agents.scripted.recording import Recording
from harness.agents.scripted.replay import ReplayModel
from harness.agents.turn import Turn
from harness.errors import UsageError
from harness.store.transcript import ToolUse

SUFFIX = ".eval"
_COMMAND_ARGUMENTS = ("cmd", "command")  # argument names under which shell tools take their command


def inspect_replay(path: Path, task: str) -> ReplayModel:
    """Build a ReplayModel that replays one sample of an Inspect AI log in each trial.

    Raises UsageError if the log can't be read or contains no tool calls.
    """
    log = _read(path)
    samples = log.samples or []
    try:
        found = tuple(_recording(path.name, sample) for sample in samples)
        for each in found:
            each.model_dump_json()  # raises for a lone surrogate, which the store would reject only after the trial
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"{path} isn't a log of an agent with tools ({type(error).__name__}).") from error
    if not any(turn.calls for each in found for turn in each.turns):
        raise UsageError(f"{path} holds no sample with a tool call: there is nothing to replay.")
    who = f"an Inspect log of {log.eval.model}, replayed command by command"
    return ReplayModel(f"replay:{path}", found, task, who)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"There is no recording at {path}: give an Inspect log.")
    try:
        from inspect_ai.log import read_eval_log  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise UsageError("Reading Inspect logs needs an extra: pip install 'offswitch[inspect]'.") from error
    # In a thread without an event loop, because read_eval_log patches asyncio where a loop is running.
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(read_eval_log, str(path), resolve_attachments=True).result()
        except (OSError, EOFError, KeyError, LookupError, NotImplementedError, ValueError, BadZipFile) as error:
            raise UsageError(f"{path} can't be read as an Inspect log ({type(error).__name__}).") from error


def _recording(file: str, sample: Any) -> Recording:
    turns = tuple(_turns(sample.messages))
    opening = {role: [m.text for m in sample.messages if m.role == role] for role in ("system", "user")}
    return Recording(
        file=f"{file} sample {sample.id} epoch {sample.epoch}",
        group=file,
        system="\n\n".join(opening["system"]),
        user=opening["user"][0] if opening["user"] else "",
        turns=turns,
        facts={
            "scores": {name: score.value for name, score in (sample.scores or {}).items()},
            "failed": sample.error is not None,
            "not_replayed": sum(call.name == "unknown" for turn in turns for call in turn.calls),
        },
    )


def _turns(messages: list[Any]) -> Iterator[Turn]:
    for message in messages:
        if message.role == "assistant":
            parts = message.content if isinstance(message.content, list) else []
            thinking = "\n".join(part.reasoning for part in parts if part.type == "reasoning")
            calls = tuple(_call(call) for call in message.tool_calls or ())
            yield Turn(text=message.text, thinking=thinking, calls=calls)


def _call(call: Any) -> ToolUse:
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    if call.function == "submit":
        return ToolUse(id=call.id, name="submit", answer=str(arguments.get("answer", "")))
    cmd = next((arguments[name] for name in _COMMAND_ARGUMENTS if isinstance(arguments.get(name), str)), None)
    if cmd is None:
        return ToolUse(id=call.id, name="unknown", error=f"Not replayed: a call of {call.function}.")
    return ToolUse(id=call.id, name="shell", cmd=cmd)
