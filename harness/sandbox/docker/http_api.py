"""A client of the Docker engine's HTTP API, for the requests that every trial makes.

This client keeps connections open, so each request costs a fifth of what it costs with the Docker SDK in a thread.
Set-up and image builds use the SDK. The API is documented at https://docs.docker.com/engine/api/.
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
    """The engine answered with HTTP status 404, because the container or image doesn't exist."""


class _Connection(asyncio.Protocol):
    """An HTTP connection to the Docker engine that carries one request at a time.

    ``reusable`` is True if the connection can carry another request.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.reusable = False
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []

    async def exchange(self, request: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return the response's HTTP status and body.

        If the engine switches to another protocol, the returned body is the first data received in that protocol.
        Raises OSError if the connection fails or no response arrives in time, and httptools.HttpParserError if the
        response isn't valid HTTP.
        """
        loop = asyncio.get_running_loop()
        self.reusable, self._parser, self._parts = False, httptools.HttpResponseParser(self), []
        self._answer = loop.create_future()
        timer = loop.call_later(ANSWER_LIMIT_S, self._fail, TimeoutError())  # costs a third of asyncio.timeout
        try:
            self.transport.write(request.encode() + body)
            return await self._answer
        finally:
            timer.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.reusable = False  # data without a request
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switched:
            self._answer.set_result((self._parser.get_status_code(), data[switched.args[0] :]))
        except httptools.HttpParserError as error:
            self._fail(error)

    def eof_received(self) -> None:
        self._fail(ConnectionResetError("the engine closed the connection"))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionResetError("the engine closed the connection"))

    def _fail(self, error: Exception) -> None:
        self.reusable = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)

    # ---- called by the parser ----

    def on_message_begin(self) -> None:
        self.reusable = False  # a second message would be an answer without a request

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._answer and not self._answer.done() and not self._parser.should_upgrade():
            self.reusable = self._parser.should_keep_alive()
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._parts)))


Connect = Callable[[], Awaitable[_Connection]]


def by_socket(path: str) -> Connect:
    """Return a function that connects to a Docker engine's Unix socket."""

    async def connect() -> _Connection:
        return (await asyncio.get_running_loop().create_unix_connection(_Connection, path))[1]

    return connect


def by_network(host: str, port: int) -> Connect:
    """Return a function that connects to a Docker engine's TCP port."""

    async def connect() -> _Connection:
        return (await asyncio.get_running_loop().create_connection(_Connection, host, port))[1]

    return connect


def connector(client: docker.DockerClient) -> Connect:
    """Return a function that connects to the Docker engine that ``client`` uses.

    Raises EngineError if ``client`` is connected over TLS or ssh.
    """
    address = str(client.api.base_url)
    if path := getattr(client.api.get_adapter(address), "socket_path", None):
        return by_socket(path)
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        raise EngineError("an engine over TLS or ssh is not supported yet: forward its socket with ssh -L")
    return by_network(parts.hostname, parts.port or 80)


@dataclass
class EngineApi:
    """A client of one Docker engine's HTTP API, for use in one event loop.

    ``connect`` is a function that opens a connection. ``version`` is the prefix of every request path, such as
    ``/v1.43``.
    """

    connect: Connect
    version: str
    _idle: list[_Connection] = field(default_factory=list)
    _users: int = 0

    @classmethod
    def of(cls, client: docker.DockerClient) -> EngineApi:
        """Create an EngineApi for the engine and API version that ``client`` uses.

        Raises EngineError if ``client`` is connected over TLS or ssh.
        """
        return cls(connector(client), f"/v{client.api.api_version}")

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep idle connections open for reuse while the ``with`` block runs."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            while self._idle and not self._users:
                self._idle.pop().transport.close()

    async def ask(self, method: str, path: str, /, *, body: Any = None, **query: str) -> Any:
        """Send a request and return the decoded JSON of the response, or None if the response is empty.

        Raises NotThereError for HTTP status 404, and EngineError for any other failure.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        answer = await self._send(method, path, query, data, "application/json")
        return msgspec.json.decode(answer) if answer else None

    async def lines(self, path: str, /, **query: str) -> list[Any]:
        """Send a GET request and return the decoded JSON of each line of the response.

        Raises NotThereError for HTTP status 404, and EngineError for any other failure.
        """
        answer = await self._send("GET", path, query, b"", "application/json")
        return [msgspec.json.decode(line) for line in answer.splitlines() if line]

    async def put(self, path: str, archive: bytes, /, **query: str) -> None:
        """Upload a tar archive to the API path ``path`` with a PUT request.

        Raises NotThereError for HTTP status 404, and EngineError for any other failure.
        """
        await self._send("PUT", path, query, archive, "application/x-tar")

    async def attach(self, container: str) -> asyncio.Transport:
        """Attach to the input and output of a container's first process, and return the connection's transport.

        Data written to the transport is the process's input. To receive the process's output, which arrives in the
        engine's frame format, the caller must set a protocol on the transport. Raises EngineError if the engine doesn't
        attach.
        """
        target = f"{self.version}/containers/{container}/attach?stdin=1&stdout=1&stderr=1&stream=1"
        request = _request("POST", target, "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0")
        with _translated():
            connection = await self.connect()
            try:
                status, answer = await connection.exchange(request)
                _checked(status, answer)
                if (
                    status != HTTPStatus.SWITCHING_PROTOCOLS or answer
                ):  # nothing runs yet that could have written output
                    raise EngineError(f"the Docker engine does not attach to a container: it answers {status}")
            except BaseException:
                connection.transport.close()
                raise
        return connection.transport

    async def _send(self, method: str, path: str, query: dict[str, str], data: bytes, kind: str) -> bytes:
        target = f"{self.version}{path}{'?' if query else ''}{urlencode(query) if query else ''}"
        request = _request(method, target, f"Content-Type: {kind}\r\nContent-Length: {len(data)}")
        with _translated():
            connection = self._idle_connection() or await self.connect()
            kept = False
            try:
                status, answer = await connection.exchange(request, data)
                kept = connection.reusable and self._users > 0
            finally:
                if kept:
                    self._idle.append(connection)
                else:
                    connection.transport.close()
        return _checked(status, answer)

    def _idle_connection(self) -> _Connection | None:
        """Remove a reusable connection from the idle list and return the connection, or None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.transport.close()
        return None


def _request(method: str, target: str, headers: str) -> str:
    return f"{method} {target} HTTP/1.1\r\nHost: docker\r\n{headers}\r\n\r\n"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, httptools.HttpParserError) as error:  # TimeoutError is an OSError
        raise no_answer(error) from error


def no_answer(error: Exception) -> EngineError:
    """Return the EngineError for a failed connection to the Docker engine or a failed read of the engine's files.

    The error is a TooFewFilesError if the process or the host can't open any more files.
    """
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
