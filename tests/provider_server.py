"""A simulated model provider on loopback: answers three APIs by a script, with delays, errors and dropped connections.

The responses are made up, in the formats of the providers' documentation and SDKs. Tests talk to the provider
through the real SDKs over real HTTP.
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

AT_ONCE = {"retry-after-ms": "1"}  # both SDKs and the lab obey this header


@dataclass(frozen=True)
class Asked:
    """One HTTP request to the provider."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A scripted HTTP response, sent after ``after_s`` seconds; if ``dropped``, the connection closes halfway."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    dropped: bool = False

    @property
    def content(self) -> bytes:
        """Return the body as bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Script = Callable[[Asked], Reply]
NO_LIST = Reply({"error": {"message": "Not Found"}}, 404)


@dataclass
class Provider:
    """A running provider: its scripts, its address and the requests it got."""

    script: Script
    models: Script = lambda asked: NO_LIST
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    most_at_once: int = 0
    _at_once: int = 0

    def address(self, api: str) -> str:
        """Return the --base-url for an API; Anthropic's SDK adds the version itself."""
        return self.url.removesuffix("/v1") if api == "messages" else self.url

    @property
    def calls(self) -> list[Asked]:
        """Return the requests for model turns, without those for the list of models."""
        return [asked for asked in self.asked if asked.method == "POST"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
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
    """Send the reply and return whether the connection stays open."""
    headers = {"content-type": "application/json", **reply.headers, "content-length": str(len(reply.content))}
    head = f"HTTP/1.1 {reply.status} So\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    content = reply.content[: len(reply.content) // 2] if reply.dropped else reply.content
    writer.write(head.encode() + b"\r\n" + content)
    await writer.drain()
    return not reply.dropped


@asynccontextmanager
async def provider(script: Script, models: Script = lambda asked: NO_LIST) -> AsyncIterator[Provider]:
    """Run a provider on a free port and yield it."""
    runs = Provider(script, models)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        connections.add(task)
        with suppress(asyncio.CancelledError):  # asyncio's own callback fails on a cancelled task
            await runs.serve(reader, writer)
        connections.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    runs.url = f"http://{host}:{port}/v1"
    try:
        yield runs
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@contextmanager
def provider_in_a_thread(script: Script, models: Script = lambda asked: NO_LIST) -> Iterator[Provider]:
    """Run a provider in a thread, for clients in another process."""
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
    """Build a script that gives each request the next reply and repeats the last one."""
    waiting = list(replies)
    return lambda asked: waiting.pop(0) if len(waiting) > 1 else waiting[0]


def troubled(script: Script, seed: int, share: float, troubles: Sequence[Reply]) -> Script:
    """Build a script that replaces a random share of the replies by one of ``troubles``."""
    generator = random.Random(seed)  # noqa: S311 - must be repeatable, not secret
    return lambda asked: generator.choice(troubles) if generator.random() < share else script(asked)


def an_error(status: int, message: str = "It went wrong.", code: str | None = None, **headers: str) -> Reply:
    """Build an error response in the usual format, with a header that allows a retry at once."""
    sent = AT_ONCE | {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"error": {"message": message, "code": code, "type": "an_error"}}, status, sent)


# ---- the three API formats ----


@dataclass(frozen=True)
class Says:
    """A model's turn: text, reasoning, and tool calls as (id, tool, arguments)."""

    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, str, Any], ...] = ()


def shell_call(cmd: str, call_id: str = "call_1") -> tuple[str, str, Any]:
    """Build a call of the shell tool."""
    return (call_id, "shell", {"cmd": cmd, "thoughts": "so it is"})


def submit_call(answer: str = "2", call_id: str = "call_1") -> tuple[str, str, Any]:
    """Build a call of the submit tool."""
    return (call_id, "submit", {"answer": answer})


def responses(says: Says, **other: Any) -> dict[str, Any]:
    """Format a turn as OpenAI's Responses API does, with unknown extra fields."""
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
    """Format a turn as OpenAI's Chat Completions API does, with other vendors' extra fields."""
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
    """Format a turn as Anthropic's Messages API does, with unknown extra fields."""
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
    """Count the model's earlier turns in the conversation that a request holds."""
    items = body.get("input") or body["messages"]
    return sum(item.get("type") == "reasoning" or item.get("role") == "assistant" for item in items)


def plays(api: str, *turns: Says, after_s: float = 0.0) -> Script:
    """Build a script that takes these turns in each conversation and repeats the last one."""
    return lambda asked: Reply(APIS[api](turns[min(turns_before(asked.body), len(turns) - 1)]), after_s=after_s)


def obedient(calls: int = 4) -> tuple[Says, ...]:
    """Return the turns of a model that requests questions until the machine goes down."""
    return tuple(Says(calls=(shell_call("./next_question", f"call_{number}"),)) for number in range(calls))
