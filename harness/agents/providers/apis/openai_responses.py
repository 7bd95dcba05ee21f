"""OpenAI's Responses API, without state at the provider: what was said is sent back as it was received."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

from harness.agents.player import Turn
from harness.agents.providers.apis.dialect import EFFORTS, Sampling, count, known, objects
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool, read_call, without_the_cut
from harness.store.transcript import Entry, ToolUse, Usage

PATH = "/responses"
TAKES = EFFORTS


def parameters(choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
    """All that is sent but the conversation."""
    return known(
        model=choice.model,
        store=False,
        include=None if _without_reasoning(choice) else ["reasoning.encrypted_content"],
        reasoning=sampling.effort and {"effort": sampling.effort},
        temperature=sampling.temperature,
        **{choice.provider.max_tokens: sampling.max_tokens},
        tools=[{"type": "function", "strict": False, **tool.model_dump()} for tool in tools] or None,
    )


def _without_reasoning(choice: ModelChoice) -> bool:
    return any(fnmatch(choice.model, pattern) for pattern in choice.provider.unreasoning)


def conversation(transcript: Sequence[Entry]) -> dict[str, Any]:
    """The conversation as it is sent: the model's own items verbatim."""
    return {"input": [item for entry in transcript for item in _items(entry)]}


def _items(entry: Entry) -> Iterable[Any]:
    if entry.role == "assistant":
        return (entry.raw or {}).get("output") or ()
    if entry.role == "tool":
        return ({"type": "function_call_output", "call_id": entry.call_id, "output": entry.text},)
    return ({"type": "message", "role": entry.role, "content": entry.text},)


def read(raw: dict[str, Any]) -> Turn:
    """The turn in an answer. Raises KeyError, TypeError or ValueError where it isn't one."""
    items = objects(raw["output"])
    reason = (raw.get("incomplete_details") or {}).get("reason")
    calls = without_the_cut(list(_calls(items)), cut=reason == "max_output_tokens")
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
            yield from (str(part[kind]) for part in objects(item["content"]) if part.get(kind))


def _thoughts(items: list[dict[str, Any]]) -> Iterator[str]:
    for item in items:
        if item.get("type") == "reasoning":
            parts = (*objects(item.get("summary") or []), *objects(item.get("content") or []))
            yield from (str(part["text"]) for part in parts if part.get("text"))


def _calls(items: list[dict[str, Any]]) -> Iterator[ToolUse]:
    for item in items:
        if item.get("type") == "function_call":
            yield read_call(str(item["call_id"]), str(item["name"]), item["arguments"])


def _usage(said: Any) -> Usage | None:
    if not said:
        return None
    return Usage(
        input=count(said, "input_tokens"),
        cached=count(said, "input_tokens_details", "cached_tokens"),
        cache_writes=count(said, "input_tokens_details", "cache_write_tokens"),
        output=count(said, "output_tokens"),
        reasoning=count(said, "output_tokens_details", "reasoning_tokens"),
    )
