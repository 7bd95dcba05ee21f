"""OpenAI's Chat Completions API, as many providers and local servers speak it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.agents.player import Turn
from harness.agents.providers.apis.dialect import EFFORTS, Sampling, count, known, objects
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool, read_call, without_the_cut
from harness.store.transcript import Entry, ToolUse, Usage

PATH = "/chat/completions"
TAKES = EFFORTS


def parameters(choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
    """All that is sent but the conversation."""
    return known(
        model=choice.model,
        reasoning_effort=sampling.effort,
        temperature=sampling.temperature,
        **{choice.provider.max_tokens: sampling.max_tokens},
        tools=[{"type": "function", "function": tool.model_dump()} for tool in tools] or None,
    )


def conversation(transcript: Sequence[Entry]) -> dict[str, Any]:
    """The conversation as it is sent: the model's own messages verbatim, but for empty ones, which none would take."""
    return {"messages": [message for entry in transcript if (message := _message(entry)) is not None]}


def _message(entry: Entry) -> dict[str, Any] | None:
    if entry.role == "tool":
        return {"role": "tool", "tool_call_id": entry.call_id, "content": entry.text}
    if entry.role == "assistant":
        said: dict[str, Any] = (entry.raw or {})["choices"][0]["message"]
        return said if said.get("content") or said.get("tool_calls") else None
    return {"role": entry.role, "content": entry.text}


def read(raw: dict[str, Any]) -> Turn:
    """The turn in an answer. Raises KeyError, TypeError, IndexError or ValueError where it isn't one."""
    choice = raw["choices"][0]
    message = choice["message"]
    end, refusal, text = choice.get("finish_reason"), message.get("refusal"), _text(message.get("content"))
    calls = without_the_cut([_call(each) for each in objects(message.get("tool_calls") or [])], cut=end == "length")
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
        return "\n".join(str(part["text"]) for part in objects(content) if part.get("text"))
    return str(content or "")


def _call(call: dict[str, Any]) -> ToolUse:
    function = call["function"]
    return read_call(str(call["id"]), str(function["name"]), function.get("arguments"))


def _usage(said: Any) -> Usage | None:
    """What was used. Some leave reasoning out of the completion, and all count it in the total."""
    if not said:
        return None
    read_in, written = count(said, "prompt_tokens"), count(said, "completion_tokens")
    return Usage(
        input=read_in,
        cached=count(said, "prompt_tokens_details", "cached_tokens"),
        output=max(written, count(said, "total_tokens") - read_in),
        reasoning=count(said, "completion_tokens_details", "reasoning_tokens"),
    )
