"""Running the tool server on loopback, and speaking with it."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from starlette.routing import Route

from harness.errors import SandboxError
from harness.toolserver.app import Desks, create_app
from harness.toolserver.wire import ShellAnswer, Status

MCP_PATH = "/mcp"
CLOSING_S = 5  # a client that is in the middle of a request gets so long when the server stops


@asynccontextmanager
async def serve(desks: Desks, *, mcp: bool = False) -> AsyncIterator[str]:
    """Serve on a free loopback port, at MCP_PATH in MCP's words too where asked; yields the base URL."""
    async with AsyncExitStack() as stack:
        app = create_app(desks)
        if mcp:
            from harness.toolserver.mcp import mcp_door  # noqa: PLC0415 - takes a second, and few runs need it

            app.router.routes.append(Route(MCP_PATH, await stack.enter_async_context(mcp_door(desks))))
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=CLOSING_S,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([listener]))  # serve() would take the process's signals
        try:
            while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


class RefusedError(SandboxError):
    """A call did not have the form that the tool server takes."""


@dataclass(frozen=True)
class ToolClient:
    """A trial's tools over HTTP: what the built-in agent loop uses, as any other agent would."""

    http: httpx.AsyncClient
    token: str

    async def shell(self, cmd: str, thoughts: str = "") -> ShellAnswer:
        """Run a command. Raises SandboxError when the server refuses."""
        body = {"cmd": cmd, "thoughts": thoughts, "request_id": uuid.uuid4().hex}
        try:
            return ShellAnswer.model_validate_json(await self._call("POST", "/shell", body))
        except RefusedError as refusal:  # the agent's own doing, so it is told and goes on
            return ShellAnswer(output=f"The call was refused: {refusal}", exit_code=None)

    async def submit(self, answer: str) -> None:
        """Hand in the answers. Raises SandboxError when the server refuses."""
        await self._call("POST", "/submit", {"answer": answer})

    async def status(self) -> Status:
        """How the trial stands. Raises SandboxError when the server refuses."""
        return Status.model_validate_json(await self._call("GET", "/status"))

    async def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self.token}"}
        response = await self.http.request(method, path, json=body, headers=headers)
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise RefusedError(response.text[:500])
        if response.is_error:
            raise SandboxError(f"the tool server refused {path}: {response.status_code} {response.text[:200]}")
        return response.content
