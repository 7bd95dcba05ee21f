"""Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.agents.player import Turn
from harness.agents.providers.apis.dialect import Sampling, count, known, objects
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool, read_call, without_the_cut
from harness.store.transcript import Entry, Usage

PATH = "/v1/messages"
TAKES = ("low", "medium", "high", "xhigh", "max")
# The API has no default; as much as an answer that isn't streamed may have within the SDK's ten minutes, rounded down.
MAX_TOKENS = 16_000


def parameters(choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
    """All that is sent but the conversation."""
    return known(
        model=choice.model,
        max_tokens=sampling.max_tokens or MAX_TOKENS,
        output_config=sampling.effort and {"effort": sampling.effort},
        tools=[{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in tools]
        or None,
    )


def conversation(transcript: Sequence[Entry]) -> dict[str, Any]:
    """The conversation as it is sent: the model's own content verbatim, what it is told in between as one message."""
    messages: list[dict[str, Any]] = []
    for entry in transcript:
        role, blocks = ("assistant" if entry.role == "assistant" else "user"), _blocks(entry)
        if blocks and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": list(blocks)})
    return known(system="\n\n".join(entry.text for entry in transcript if entry.role == "system") or None) | {
        "messages": messages
    }


def _blocks(entry: Entry) -> list[Any]:
    match entry.role:
        case "assistant":
            return list((entry.raw or {})["content"])
        case "tool":
            return [{"type": "tool_result", "tool_use_id": entry.call_id, "content": entry.text}]
        case "user":
            return [{"type": "text", "text": entry.text}]
    return []


def read(raw: dict[str, Any]) -> Turn:
    """The turn in an answer. Raises KeyError, TypeError or ValueError where it isn't one."""
    blocks = objects(raw["content"])
    asked = [block for block in blocks if block.get("type") == "tool_use"]
    called = [read_call(str(block["id"]), str(block["name"]), block["input"]) for block in asked]
    text, calls = _joined(blocks, "text"), without_the_cut(called, cut=raw.get("stop_reason") == "max_tokens")
    return Turn(
        text=text,
        thinking=_joined(blocks, "thinking"),
        calls=calls,
        refused=raw.get("stop_reason") == "refusal" and not (text or calls),
        model=str(raw.get("model") or ""),
        usage=_usage(raw.get("usage")),
        raw=raw,
    )


def _joined(blocks: Iterable[dict[str, Any]], kind: str) -> str:
    return "\n".join(str(block[kind]) for block in blocks if block.get("type") == kind and block.get(kind))


def _usage(said: Any) -> Usage | None:
    """What was used; Anthropic counts what it read from the cache or wrote to it beside the input."""
    if not said:
        return None
    cached, written = count(said, "cache_read_input_tokens"), count(said, "cache_creation_input_tokens")
    return Usage(
        input=count(said, "input_tokens") + cached + written,
        cached=cached,
        cache_writes=written,
        output=count(said, "output_tokens"),
    )
