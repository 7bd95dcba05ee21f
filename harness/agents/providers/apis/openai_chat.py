"""Builds requests and parses responses for the Chat Completions API of OpenAI and many other providers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.agents.providers.apis.dialect import OPENAI_EFFORTS, Sampling, require_objects, token_count, without_none
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool, mark_truncated_call, read_call
from harness.agents.turn import Turn
from harness.store.transcript import Entry, ToolUse, Usage

PATH = "/chat/completions"
EFFORTS = OPENAI_EFFORTS


def parameters(choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
    """Return the request fields that are the same in every call, i.e. model name, sampling options and tools."""
    return without_none(
        model=choice.model,
        reasoning_effort=sampling.effort,
        temperature=sampling.temperature,
        **{choice.provider.max_tokens: sampling.max_tokens},
        tools=[{"type": "function", "function": tool.model_dump()} for tool in tools] or None,
    )


def conversation(transcript: Sequence[Entry]) -> dict[str, Any]:
    """Convert a transcript to the request field ``messages``.

    The model's own messages are copied unchanged from the provider's earlier responses. Empty messages of the model are
    left out, because providers reject them.
    """
    return {"messages": [message for entry in transcript if (message := _message(entry)) is not None]}


def _message(entry: Entry) -> dict[str, Any] | None:
    if entry.role == "tool":
        return {"role": "tool", "tool_call_id": entry.call_id, "content": entry.text}
    if entry.role == "assistant":
        message: dict[str, Any] = (entry.raw or {})["choices"][0]["message"]
        return message if message.get("content") or message.get("tool_calls") else None
    return {"role": entry.role, "content": entry.text}


def read(raw: dict[str, Any]) -> Turn:
    """Parse a response body into a Turn.

    Raises KeyError, TypeError, IndexError or ValueError if the body is malformed.
    """
    choice = raw["choices"][0]
    message = choice["message"]
    end, refusal, text = choice.get("finish_reason"), message.get("refusal"), _text(message.get("content"))
    called = [_call(each) for each in require_objects(message.get("tool_calls") or [])]
    calls = mark_truncated_call(called, truncated=end == "length")
    refused = bool(refusal or end == "content_filter") and not (text or calls)
    return Turn(
        text=text or str(refusal or ""),
        thinking=str(message.get("reasoning_content") or message.get("reasoning") or ""),
        calls=calls,
        refused=refused,
        model=str(raw.get("model") or ""),
        usage=_usage(raw.get("usage")),
        raw=raw,
    )


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in require_objects(content) if part.get("text"))
    return str(content or "")


def _call(call: dict[str, Any]) -> ToolUse:
    function = call["function"]
    return read_call(str(call["id"]), str(function["name"]), function.get("arguments"))


def _usage(usage: Any) -> Usage | None:
    """Convert the ``usage`` field of a response to a Usage, or return None if the field is empty.

    Some providers count reasoning tokens only in ``total_tokens``. The number of output tokens is therefore the larger
    of ``completion_tokens`` and ``total_tokens`` minus ``prompt_tokens``.
    """
    if not usage:
        return None
    read_in, written = token_count(usage, "prompt_tokens"), token_count(usage, "completion_tokens")
    return Usage(
        input=read_in,
        cached=token_count(usage, "prompt_tokens_details", "cached_tokens"),
        output=max(written, token_count(usage, "total_tokens") - read_in),
        reasoning=token_count(usage, "completion_tokens_details", "reasoning_tokens"),
    )
