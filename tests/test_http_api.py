"""The client of the engine's HTTP API, against a server that answers what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.errors import EngineError
from harness.sandbox.docker.http_api import EngineApi, NotThereError, by_socket
from tests.builders import asynchronous

Says = Callable[[bytes], bytes]


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Compose an HTTP response."""
    head = "".join(f"{each}\r\n" for each in (*headers, f"Content-Length: {len(body)}"))
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


class Peer:
    """A server that records its requests and counts its connections."""

    def __init__(self, says: Says) -> None:
        self.says, self.asked, self.connections = says, list[bytes](), 0
        self.serving: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the client ends the connection or the answer is empty, which closes it."""
        self.connections += 1
        self.serving.add(asyncio.current_task())
        while head := await _head(reader):
            self.asked.append(head)
            if not (answer := self.says(head)):
                break
            writer.write(answer)
        writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


@asynccontextmanager
async def an_engine(folder: Path, says: Says) -> AsyncIterator[tuple[EngineApi, Peer]]:
    """Start a server with these answers; yield a client of it and the server."""
    peer, path = Peer(says), str(folder / "s")
    async with await asyncio.start_unix_server(peer.serve, path):
        yield EngineApi(by_socket(path), "/v1.41"), peer
        await asyncio.gather(*(each for each in peer.serving if each))


@asynchronous
async def test_a_request_is_sent_completely(tmp_path: Path) -> None:
    """Method, path, query and JSON body reach the server, and the answer's JSON is returned."""
    async with an_engine(tmp_path, lambda head: http(201, b'{"Id": "x"}')) as (api, peer):
        assert await api.ask("POST", "/containers/create", body={"Image": "i"}, name="n m") == {"Id": "x"}
    line, _, rest = peer.asked[0].partition(b"\r\n")
    assert line == b"POST /v1.41/containers/create?name=n+m HTTP/1.1"
    assert json.loads(rest.rpartition(b"\r\n\r\n")[2]) == {"Image": "i"}


@asynchronous
async def test_a_connection_serves_many_requests(tmp_path: Path) -> None:
    """One connection serves all requests of a kept_open block and is closed after it."""
    async with an_engine(tmp_path, lambda head: http(204)) as (api, peer):
        with api.kept_open():
            for _ in range(3):
                assert await api.ask("POST", "/x") is None
        assert peer.connections == 1
        await api.ask("POST", "/x")
        assert peer.connections == 2


@asynchronous
async def test_a_connection_that_grew_old_is_replaced(tmp_path: Path) -> None:
    """After the server closed an idle connection, the next request opens another."""
    async with an_engine(tmp_path, lambda head: http(204, b"", "Connection: close")) as (api, peer):
        with api.kept_open():
            await api.ask("POST", "/x")
            await api.ask("POST", "/x")
        assert peer.connections == 2


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        (lambda head: http(404, b'{"message": "No such container"}'), NotThereError, "refused: No such container"),
        (lambda head: http(500, b"<odd>"), EngineError, "refused: <odd>"),
        (lambda head: b"", EngineError, "does not answer"),
        (lambda head: b"no HTTP at all\r\n\r\n", EngineError, "does not answer"),
    ],
    ids=["unknown", "failed", "hung up", "garbage"],
)
@asynchronous
async def test_every_failure_is_an_engine_error(tmp_path: Path, says: Any, kind: type[Exception], words: str) -> None:
    """A request that fails in any way raises an EngineError with the engine's reason."""
    async with an_engine(tmp_path, says) as (api, _):
        with pytest.raises(kind, match=words):
            await api.ask("GET", "/x")


@asynchronous
async def test_no_engine_is_an_engine_error(tmp_path: Path) -> None:
    """A request to a socket that doesn't exist raises EngineError."""
    api = EngineApi(by_socket(str(tmp_path / "nobody")), "/v1.41")
    with pytest.raises(EngineError, match="does not answer"):
        await api.ask("GET", "/x")


@asynchronous
async def test_an_attached_stream_is_handed_over(tmp_path: Path) -> None:
    """After the switch of protocols the caller writes to and reads from the container's stream directly."""
    switched = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    async with an_engine(tmp_path, lambda head: switched) as (api, peer):
        stream, reader = await api.attach("c"), asyncio.StreamReader()
        stream.set_protocol(asyncio.StreamReaderProtocol(reader))
        reader.set_transport(stream)
        assert peer.asked[0].startswith(b"POST /v1.41/containers/c/attach?stdin=1&stdout=1&stderr=1&stream=1 ")
        stream.write(b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")  # any bytes: this peer happens to understand these
        assert await reader.readexactly(len(switched)) == switched
        stream.close()


@asynchronous
async def test_an_engine_that_does_not_attach_is_refused(tmp_path: Path) -> None:
    """An attach request that isn't answered by a switch of protocols raises EngineError."""
    async with an_engine(tmp_path, lambda head: http(200)) as (api, _):
        with pytest.raises(EngineError, match="does not attach"):
            await api.attach("c")
