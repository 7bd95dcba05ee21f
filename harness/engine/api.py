"""The engine's HTTP interface over kept-alive connections: what the docker SDK does on threads, at a fifth of its cost.

Only what happens in every trial goes this way; set-up and images stay with the SDK. See
https://docs.docker.com/engine/api/ for the paths and codes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

import docker
import h11

from harness.errors import EngineError

CHUNK = 1 << 16
STREAM_LIMIT = 1 << 20
ANSWER_LIMIT_S = 120.0

Headers = list[tuple[str, str]]
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class NotThereError(EngineError):
    """The engine knows no such thing."""


def connector(client: docker.DockerClient) -> Connect:
    """How to reach the engine that an SDK client speaks with. Raises EngineError for one behind TLS or ssh."""
    address = str(client.api.base_url)
    if path := getattr(client.api.get_adapter(address), "socket_path", None):
        return lambda: asyncio.open_unix_connection(path, limit=STREAM_LIMIT)
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        raise EngineError("an engine over TLS or ssh is not supported yet: forward its socket with ssh -L")
    return lambda: asyncio.open_connection(parts.hostname, parts.port, limit=STREAM_LIMIT)


@dataclass
class _Line:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    async def exchange(self, method: str, target: str, headers: Headers, body: bytes) -> tuple[int, bytes]:
        """Send one request and take its answer; of one that switches protocols, what came after it."""
        request = h11.Request(method=method, target=target, headers=headers)
        sent = (request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
        self.writer.write(b"".join(self.http.send(each) or b"" for each in sent))
        status, answer = 0, b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(await self.reader.read(CHUNK))
            elif isinstance(event, h11.InformationalResponse) and event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                return event.status_code, self.http.trailing_data[0]
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, answer
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("the engine hung up")

    def renewed(self) -> bool:
        """Make it ready for another exchange; whether it can carry one."""
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        return True


@dataclass
class EngineApi:
    """One engine, spoken with from one event loop. Connections are kept while anybody is in ``kept_open``."""

    connect: Connect
    version: str
    _idle: list[_Line] = field(default_factory=list)
    _users: int = 0

    @classmethod
    def of(cls, client: docker.DockerClient) -> EngineApi:
        """The same engine as an SDK client's. Raises EngineError."""
        return cls(connector(client), f"/v{client.api.api_version}")

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep connections for the next request while the block runs."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            while self._idle and not self._users:
                self._idle.pop().writer.close()

    async def ask(self, method: str, path: str, /, *, body: Any = None, **query: str) -> Any:
        """One exchange; the answer's JSON, or None where it is empty. Raises EngineError, NotThereError."""
        data = b"" if body is None else json.dumps(body).encode()
        answer = await self._send(method, path, query, data, "application/json")
        return json.loads(answer) if answer else None

    async def lines(self, path: str, /, **query: str) -> list[Any]:
        """One exchange whose answer is JSON, one object a line. Raises EngineError, NotThereError."""
        answer = await self._send("GET", path, query, b"", "application/json")
        return [json.loads(line) for line in answer.splitlines() if line]

    async def put(self, path: str, archive: bytes, /, **query: str) -> None:
        """Hand over an archive. Raises EngineError, NotThereError."""
        await self._send("PUT", path, query, archive, "application/x-tar")

    async def attach(self, container: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The streams of a container's first process: input to write to, framed output to read. Raises EngineError."""
        query = {"stdin": "1", "stdout": "1", "stderr": "1", "stream": "1"}
        headers = [("Host", "docker"), ("Connection", "Upgrade"), ("Upgrade", "tcp"), ("Content-Length", "0")]
        with _translated():
            line = _Line(*await self.connect())
            try:
                target = self._target(f"/containers/{container}/attach", query)
                status, answer = await line.exchange("POST", target, headers, b"")
                _checked(status, answer)
                if status != HTTPStatus.SWITCHING_PROTOCOLS or answer:  # nothing runs yet that could have said a word
                    raise EngineError(f"the Docker engine does not attach to a container: it answers {status}")
            except BaseException:
                line.writer.close()
                raise
        return line.reader, line.writer

    async def _send(self, method: str, path: str, query: dict[str, str], data: bytes, kind: str) -> bytes:
        headers = [("Host", "docker"), ("Content-Type", kind), ("Content-Length", str(len(data)))]
        with _translated():
            line = self._take() or _Line(*await self.connect())
            kept = False
            try:
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    status, answer = await line.exchange(method, self._target(path, query), headers, data)
                kept = line.renewed() and self._users > 0
            finally:
                if kept:
                    self._idle.append(line)
                else:
                    line.writer.close()
        return _checked(status, answer)

    def _take(self) -> _Line | None:
        """A connection that was kept and that the engine hasn't closed meanwhile."""
        while self._idle:
            line = self._idle.pop()
            if not line.reader.at_eof():
                return line
            line.writer.close()
        return None

    def _target(self, path: str, query: dict[str, str]) -> str:
        return f"{self.version}{path}{'?' if query else ''}{urlencode(query)}"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, h11.ProtocolError) as error:  # an answer that comes too late is an OSError, too
        raise EngineError(f"the Docker engine does not answer: {error or 'no answer in time'}") from error


def _checked(status: int, answer: bytes) -> bytes:
    if status < HTTPStatus.BAD_REQUEST:
        return answer
    try:
        reason = str(json.loads(answer)["message"])
    except (ValueError, KeyError, TypeError):
        reason = answer[:200].decode(errors="replace") or str(status)
    kind = NotThereError if status == HTTPStatus.NOT_FOUND else EngineError
    raise kind(f"the Docker engine refused: {reason}")
