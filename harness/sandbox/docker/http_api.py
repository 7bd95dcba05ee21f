"""The engine's HTTP interface over kept-alive connections: what the docker SDK does on threads, at a fifth of its cost.

Only what happens in every trial goes this way; set-up and images stay with the SDK. See
https://docs.docker.com/engine/api/ for the paths and codes.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

import docker
import httptools
import msgspec

from harness.errors import EngineError, TooFewFilesError

ANSWER_LIMIT_S = 120.0


class NotThereError(EngineError):
    """The engine knows no such thing."""


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time; ``lasting``: it can carry another.

    What arrives is parsed as it comes, without a reader in between that would have to be woken for it.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.lasting = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []

    async def exchange(self, request: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send one request and take its answer; of one that switches protocols, what came after it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.lasting, self._parser, self._parts = False, httptools.HttpResponseParser(self), []
        self._answer = loop.create_future()
        clock = loop.call_later(ANSWER_LIMIT_S, self._fail, TimeoutError())  # a third of what asyncio.timeout takes
        try:
            self.transport.write(request.encode() + body)
            return await self._answer
        finally:
            clock.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.lasting = False  # nothing was asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switched:
            self._answer.set_result((self._parser.get_status_code(), data[switched.args[0] :]))
        except httptools.HttpParserError as error:
            self._fail(error)

    def eof_received(self) -> None:
        self._fail(ConnectionResetError("the engine hung up"))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionResetError("the engine hung up"))

    def _fail(self, error: Exception) -> None:
        self.lasting = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)

    # ---- what the parser tells ----

    def on_message_begin(self) -> None:
        self.lasting = False  # where this isn't the first, nobody asked for it

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._answer and not self._answer.done() and not self._parser.should_upgrade():
            self.lasting = self._parser.should_keep_alive()
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))


Connect = Callable[[], Awaitable[_Connection]]


def by_socket(path: str) -> Connect:
    """The way to an engine that listens on a socket of this host."""

    async def connect() -> _Connection:
        return (await asyncio.get_running_loop().create_unix_connection(_Connection, path))[1]

    return connect


def by_network(host: str, port: int) -> Connect:
    """The way to an engine that listens on a port."""

    async def connect() -> _Connection:
        return (await asyncio.get_running_loop().create_connection(_Connection, host, port))[1]

    return connect


def connector(client: docker.DockerClient) -> Connect:
    """How to reach the engine that an SDK client speaks with. Raises EngineError for one behind TLS or ssh."""
    address = str(client.api.base_url)
    if path := getattr(client.api.get_adapter(address), "socket_path", None):
        return by_socket(path)
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        raise EngineError("an engine over TLS or ssh is not supported yet: forward its socket with ssh -L")
    return by_network(parts.hostname, parts.port or 80)


@dataclass
class EngineApi:
    """One engine, spoken with from one event loop. Connections are kept while anybody is in ``kept_open``."""

    connect: Connect
    version: str
    _idle: list[_Connection] = field(default_factory=list)
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
                self._idle.pop().transport.close()

    async def ask(self, method: str, path: str, /, *, body: Any = None, **query: str) -> Any:
        """One exchange; the answer's JSON, or None where it is empty. Raises EngineError, NotThereError."""
        data = b"" if body is None else msgspec.json.encode(body)
        answer = await self._send(method, path, query, data, "application/json")
        return msgspec.json.decode(answer) if answer else None

    async def lines(self, path: str, /, **query: str) -> list[Any]:
        """One exchange whose answer is JSON, one object a line. Raises EngineError, NotThereError."""
        answer = await self._send("GET", path, query, b"", "application/json")
        return [msgspec.json.decode(line) for line in answer.splitlines() if line]

    async def put(self, path: str, archive: bytes, /, **query: str) -> None:
        """Hand over an archive. Raises EngineError, NotThereError."""
        await self._send("PUT", path, query, archive, "application/x-tar")

    async def attach(self, container: str) -> asyncio.Transport:
        """The streams of a container's first process: input to write, framed output to come. Raises EngineError.

        It is for the caller to set a protocol that takes what comes.
        """
        target = f"{self.version}/containers/{container}/attach?stdin=1&stdout=1&stderr=1&stream=1"
        request = _request("POST", target, "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0")
        with _translated():
            line = await self.connect()
            try:
                status, answer = await line.exchange(request)
                _checked(status, answer)
                if status != HTTPStatus.SWITCHING_PROTOCOLS or answer:  # nothing runs yet that could have said a word
                    raise EngineError(f"the Docker engine does not attach to a container: it answers {status}")
            except BaseException:
                line.transport.close()
                raise
        return line.transport

    async def _send(self, method: str, path: str, query: dict[str, str], data: bytes, kind: str) -> bytes:
        target = f"{self.version}{path}{'?' if query else ''}{urlencode(query) if query else ''}"
        request = _request(method, target, f"Content-Type: {kind}\r\nContent-Length: {len(data)}")
        with _translated():
            line = self._take() or await self.connect()
            kept = False
            try:
                status, answer = await line.exchange(request, data)
                kept = line.lasting and self._users > 0
            finally:
                if kept:
                    self._idle.append(line)
                else:
                    line.transport.close()
        return _checked(status, answer)

    def _take(self) -> _Connection | None:
        """A connection that was kept and that the engine hasn't closed meanwhile."""
        while self._idle:
            line = self._idle.pop()
            if line.lasting:
                return line
            line.transport.close()
        return None


def _request(method: str, target: str, headers: str) -> str:
    return f"{method} {target} HTTP/1.1\r\nHost: docker\r\n{headers}\r\n\r\n"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, httptools.HttpParserError) as error:  # an answer that comes too late is an OSError, too
        raise no_answer(error) from error


def no_answer(error: Exception) -> EngineError:
    """The failure to reach the engine, or to look at what it has on this host, made the lab's own."""
    if any(os.strerror(number) in str(error) for number in (errno.EMFILE, errno.ENFILE)):
        return TooFewFilesError()
    return EngineError(f"the Docker engine does not answer: {error or 'no answer in time'}")


def _checked(status: int, answer: bytes) -> bytes:
    if status < HTTPStatus.BAD_REQUEST:
        return answer
    try:
        reason = str(msgspec.json.decode(answer)["message"])
    except (ValueError, KeyError, TypeError):
        reason = answer[:200].decode(errors="replace") or str(status)
    kind = NotThereError if status == HTTPStatus.NOT_FOUND else EngineError
    raise kind(f"the Docker engine refused: {reason}")
