"""Builds requests and parses responses for Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.agents.providers.apis.dialect import Sampling, require_objects, token_count, without_none
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool, mark_truncated_call, read_call
from harness.agents.turn import Turn
from harness.store.transcript import Entry, Usage

PATH = "/v1/messages"
EFFORTS = ("low", "medium", "high", "xhigh", "max")
# The API requires a limit. This is about the longest answer that the SDK allows without streaming (ten minutes).
MAX_TOKENS = 16_000


def parameters(choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the request fields that are the same in every call, i.e. model name, sampling options and tools."""
    return without_none(
        model=choice.model,
        max_tokens=sampling.max_tokens or MAX_TOKENS,
        output_config=sampling.effort and {"effort": sampling.effort},
        tools=[{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in tools]
        or None,
    )


def conversation(transcript: Sequence[Entry]) -> dict[str, Any]:
    """Convert a transcript to the request fields ``messages`` and ``system``.

    The model's own messages are copied unchanged from Anthropic's earlier responses. Consecutive tool results and user
    texts are merged into one user message.
    """
    messages: list[dict[str, Any]] = []
    for entry in transcript:
        role, blocks = ("assistant" if entry.role == "assistant" else "user"), _blocks(entry)
        if blocks and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": list(blocks)})
    return without_none(system="\n\n".join(entry.text for entry in transcript if entry.role == "system") or None) | {
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
    """Parse a response body into a Turn. Raises KeyError, TypeError or ValueError if the body is malformed."""
    blocks = require_objects(raw["content"])
    tool_uses = [block for block in blocks if block.get("type") == "tool_use"]
    called = [read_call(str(block["id"]), str(block["name"]), block["input"]) for block in tool_uses]
    text, calls = _joined(blocks, "text"), mark_truncated_call(called, truncated=raw.get("stop_reason") == "max_tokens")
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


def _usage(usage: Any) -> Usage | None:
    """Convert the ``usage`` field of a response to a Usage, or return None if the field is empty.

    The input tokens of the Usage include cache reads and cache writes, which Anthropic reports separately.
    """
    if not usage:
        return None
    cached, written = token_count(usage, "cache_read_input_tokens"), token_count(usage, "cache_creation_input_tokens")
    return Usage(
        input=token_count(usage, "input_tokens") + cached + written,
        cached=cached,
        cache_writes=written,
        output=token_count(usage, "output_tokens"),
    )
