"""Builds requests and parses responses for OpenAI's Responses API.

Requests tell the provider to store nothing, so each request contains the whole conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

from harness.agents.providers.apis.dialect import OPENAI_EFFORTS, Sampling, require_objects, token_count, without_none
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool, mark_truncated_call, read_call
from harness.agents.turn import Turn
from harness.store.transcript import Entry, ToolUse, Usage

PATH = "/responses"
EFFORTS = OPENAI_EFFORTS


def parameters(choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the request fields that are the same in every call, i.e. model name, sampling options and tools."""
    return without_none(
        model=choice.model,
        store=False,
        include=None if _rejects_encrypted_reasoning(choice) else ["reasoning.encrypted_content"],
        reasoning=sampling.effort and {"effort": sampling.effort},
        temperature=sampling.temperature,
        **{choice.provider.max_tokens: sampling.max_tokens},
        tools=[{"type": "function", "strict": False, **tool.model_dump()} for tool in tools] or None,
    )


def _rejects_encrypted_reasoning(choice: ModelChoice) -> bool:
    return any(fnmatch(choice.model, pattern) for pattern in choice.provider.unreasoning)


def conversation(transcript: Sequence[Entry]) -> dict[str, Any]:
    """Convert a transcript to the request field ``input``.

    The model's own output items are copied unchanged from the provider's earlier responses.
    """
    return {"input": [item for entry in transcript for item in _items(entry)]}


def _items(entry: Entry) -> Iterable[Any]:
    if entry.role == "assistant":
        return (entry.raw or {}).get("output") or ()
    if entry.role == "tool":
        return ({"type": "function_call_output", "call_id": entry.call_id, "output": entry.text},)
    return ({"type": "message", "role": entry.role, "content": entry.text},)


def read(raw: dict[str, Any]) -> Turn:
    """Parse a response body into a Turn. Raises KeyError, TypeError or ValueError if the body is malformed."""
    items = require_objects(raw["output"])
    reason = (raw.get("incomplete_details") or {}).get("reason")
    calls = mark_truncated_call(list(_calls(items)), truncated=reason == "max_output_tokens")
    texts, refusals = list(_texts(items, "text")), list(_texts(items, "refusal"))
    refused = bool(refusals or reason == "content_filter") and not (texts or calls)
    return Turn(
        text="\n".join(texts or refusals),
        thinking="\n".join(_thoughts(items)),
        calls=calls,
        refused=refused,
        model=str(raw.get("model") or ""),
        usage=_usage(raw.get("usage")),
        raw=raw,
    )


def _texts(items: list[dict[str, Any]], kind: str) -> Iterator[str]:
    for item in items:
        if item.get("type") == "message":
            yield from (str(part[kind]) for part in require_objects(item["content"]) if part.get(kind))


def _thoughts(items: list[dict[str, Any]]) -> Iterator[str]:
    for item in items:
        if item.get("type") == "reasoning":
            parts = (*require_objects(item.get("summary") or []), *require_objects(item.get("content") or []))
            yield from (str(part["text"]) for part in parts if part.get("text"))


def _calls(items: list[dict[str, Any]]) -> Iterator[ToolUse]:
    for item in items:
        if item.get("type") == "function_call":
            yield read_call(str(item["call_id"]), str(item["name"]), item["arguments"])


def _usage(usage: Any) -> Usage | None:
    if not usage:
        return None
    return Usage(
        input=token_count(usage, "input_tokens"),
        cached=token_count(usage, "input_tokens_details", "cached_tokens"),
        cache_writes=token_count(usage, "input_tokens_details", "cache_write_tokens"),
        output=token_count(usage, "output_tokens"),
        reasoning=token_count(usage, "output_tokens_details", "reasoning_tokens"),
    )
