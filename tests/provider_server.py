"""A provider on loopback that speaks three APIs and does as a script says: answers, delays, errors, dropped lines.

It is simulated: what it says is made up here, in the forms that the providers' documentation and SDKs give. Tests
speak with it through the real SDKs over real HTTP.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

AT_ONCE = {"retry-after-ms": "1"}  # both SDKs and the lab wait as long as they are asked to


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the provider does: ``after_s`` seconds later it sends an answer, or drops the line in the middle of it."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    dropped: bool = False

    @property
    def content(self) -> bytes:
        """The body as it is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Script = Callable[[Asked], Reply]
NO_LIST = Reply({"error": {"message": "Not Found"}}, 404)


@dataclass
class Provider:
    """A provider that runs: where, what it was asked, and what it does."""

    script: Script
    models: Script = lambda asked: NO_LIST
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    most_at_once: int = 0
    _at_once: int = 0

    def address(self, api: str) -> str:
        """What --base-url is for an API: Anthropic's SDK adds the version by itself."""
        return self.url.removesuffix("/v1") if api == "messages" else self.url

    @property
    def calls(self) -> list[Asked]:
        """The calls of the model, without questions about models."""
        return [asked for asked in self.asked if asked.method == "POST"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests."""
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await _send(writer, await self._think(await _read(reader))):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _think(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        reply = (self.script if asked.method == "POST" else self.models)(asked)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(reply.after_s)
        finally:
            self._at_once -= 1
        return reply


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    content = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(method, path, headers, json.loads(content) if content else {})


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Send the reply; whether the line is still there."""
    headers = {"content-type": "application/json", **reply.headers, "content-length": str(len(reply.content))}
    head = f"HTTP/1.1 {reply.status} So\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    content = reply.content[: len(reply.content) // 2] if reply.dropped else reply.content
    writer.write(head.encode() + b"\r\n" + content)
    await writer.drain()
    return not reply.dropped


@asynccontextmanager
async def provider(script: Script, models: Script = lambda asked: NO_LIST) -> AsyncIterator[Provider]:
    """Run a provider on a free port."""
    runs = Provider(script, models)
    lines: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        lines.add(task)
        with suppress(asyncio.CancelledError):  # asyncio's own callback can't bear a line that was cancelled
            await runs.serve(reader, writer)
        lines.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    runs.url = f"http://{host}:{port}/v1"
    try:
        yield runs
    finally:
        server.close()
        for task in tuple(lines):
            task.cancel()
        await asyncio.gather(*lines, return_exceptions=True)


@contextmanager
def provider_in_a_thread(script: Script, models: Script = lambda asked: NO_LIST) -> Iterator[Provider]:
    """Run a provider for another process to use."""
    ready, over, runs = threading.Event(), threading.Event(), list[Provider]()

    async def run() -> None:
        async with provider(script, models) as started:
            runs.append(started)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(30)
        yield runs[0]
    finally:
        over.set()
        thread.join(30)


# ---- scripts ----


def in_turn(*replies: Reply) -> Script:
    """Each request gets the next reply, and the last one ever after."""
    waiting = list(replies)
    return lambda asked: waiting.pop(0) if len(waiting) > 1 else waiting[0]


def troubled(script: Script, seed: int, share: float, troubles: Sequence[Reply]) -> Script:
    """The script, but one request in so many meets a trouble instead."""
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    return lambda asked: chance.choice(troubles) if chance.random() < share else script(asked)


def an_error(status: int, message: str = "It went wrong.", code: str | None = None, **headers: str) -> Reply:
    """An error as most providers put it, to be tried again at once."""
    sent = AT_ONCE | {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "code": code, "type": "an_error"}}, status, sent)


# ---- three ways to say the same ----


@dataclass(frozen=True)
class Says:
    """What a model says in a turn: text, reasoning, and calls as (id, tool, arguments)."""

    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, str, Any], ...] = ()


def shell_call(cmd: str, call_id: str = "call_1") -> tuple[str, str, Any]:
    """A call of the shell tool."""
    return (call_id, "shell", {"cmd": cmd, "thoughts": "so it is"})


def submit_call(answer: str = "2", call_id: str = "call_1") -> tuple[str, str, Any]:
    """A call of the submit tool."""
    return (call_id, "submit", {"answer": answer})


def responses(says: Says, **other: Any) -> dict[str, Any]:
    """As OpenAI's Responses API puts it, with fields nobody has heard of."""
    output: list[dict[str, Any]] = [
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": says.thinking}] if says.thinking else [],
            "encrypted_content": "gAAAAB-sealed==",
            "status": None,
        }
    ]
    if says.text:
        part = {"type": "output_text", "text": says.text, "annotations": [], "of_tomorrow": {"a": None}}
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]})
    for call_id, name, arguments in says.calls:
        written = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {"type": "function_call", "id": f"fc_{call_id}", "call_id": call_id, "name": name, "arguments": written}
        output.append({**call, "status": "completed", "of_tomorrow": [1]})
    usage = {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 400},
        "output_tokens": 200,
        "output_tokens_details": {"reasoning_tokens": 150},
        "total_tokens": 1200,
    }
    usual = {"id": "resp_1", "object": "response", "status": "completed", "error": None, "model": "a-model-2026-01-01"}
    return {**usual, "output": output, "usage": usage, **other}


def chat(says: Says, **other: Any) -> dict[str, Any]:
    """As OpenAI's Chat Completions API puts it, with what others add to it."""
    message: dict[str, Any] = {"role": "assistant", "content": says.text or None, "refusal": None}
    if says.thinking:
        message["reasoning_content"] = says.thinking
    if says.calls:
        message["tool_calls"] = [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
                "extra_content": {"google": {"thought_signature": "sealed=="}},
            }
            for call_id, name, given in says.calls
        ]
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 50,
        "total_tokens": 1200,
        "prompt_tokens_details": {"cached_tokens": 400},
        "completion_tokens_details": {"reasoning_tokens": 150},
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if says.calls else "stop"}
    return {"id": "c_1", "model": "a-model-2026-01-01", "choices": [choice], "usage": usage, **other}


def messages(says: Says, **other: Any) -> dict[str, Any]:
    """As Anthropic's Messages API puts it, with fields nobody has heard of."""
    content: list[dict[str, Any]] = []
    if says.thinking:
        content.append({"type": "thinking", "thinking": says.thinking, "signature": "sealed=="})
        content.append({"type": "redacted_thinking", "data": "sealed=="})
    if says.text:
        content.append({"type": "text", "text": says.text, "of_tomorrow": {"a": None}})
    for call_id, name, arguments in says.calls:
        content.append({"type": "tool_use", "id": call_id, "name": name, "input": arguments})
    usage = {
        "input_tokens": 600,
        "cache_read_input_tokens": 400,
        "cache_creation_input_tokens": 0,
        "output_tokens": 200,
        "service_tier": "standard",
    }
    usual = {"id": "msg_1", "type": "message", "role": "assistant", "model": "a-model-2026-01-01"}
    stop = "tool_use" if says.calls else "end_turn"
    return {**usual, "content": content, "stop_reason": stop, "usage": usage, **other}


Put = Callable[..., dict[str, Any]]
APIS: dict[str, Put] = {"responses": responses, "chat": chat, "messages": messages}


def turns_before(body: dict[str, Any]) -> int:
    """How many turns the model has taken in the conversation it is sent."""
    items = body.get("input") or body["messages"]
    return sum(item.get("type") == "reasoning" or item.get("role") == "assistant" for item in items)


def plays(api: str, *turns: Says, after_s: float = 0.0) -> Script:
    """A model that takes these turns in each conversation, and says the last one ever after."""
    return lambda asked: Reply(APIS[api](turns[min(turns_before(asked.body), len(turns) - 1)]), after_s=after_s)


def obedient(calls: int = 4) -> tuple[Says, ...]:
    """The turns of a model that asks for questions until the machine goes down."""
    return tuple(Says(calls=(shell_call("./next_question", f"call_{number}"),)) for number in range(calls))
