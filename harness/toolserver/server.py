"""Runs the tool server for built-in agents and, on a loopback port, for external agents."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starlette.routing import Route
from starlette.types import ASGIApp

from harness.session.messages import MCP_PATH
from harness.toolserver.app import SessionRegistry, create_app

# Longer than any client keeps an idle connection, so that no request meets a connection that is being closed.
KEEP_ALIVE_S = 60
SHUTDOWN_S = 5  # for requests in progress when the server stops


@dataclass(frozen=True)
class ToolServer:
    """A running tool server.

    ``url`` is the address for external agents, or None if external agents can't connect.
    """

    app: ASGIApp
    url: str | None = None


@asynccontextmanager
async def tool_server(sessions: SessionRegistry, *, outside: bool = False) -> AsyncIterator[ToolServer]:
    """Run the tool server for these sessions while the ``with`` block runs.

    If ``outside`` is True, external agents can connect to a loopback port over HTTP and MCP.
    """
    app = create_app(sessions)
    if not outside:
        yield ToolServer(app)
        return
    async with serve(sessions, mcp=True) as url:
        yield ToolServer(app, url)


@asynccontextmanager
async def serve(sessions: SessionRegistry, *, mcp: bool = False) -> AsyncIterator[str]:
    """Serve the sessions on a free loopback port while the ``with`` block runs, and yield the base URL.

    If ``mcp`` is True, the sessions are also served over MCP.
    """
    import uvicorn  # noqa: PLC0415 - few runs serve external agents

    async with AsyncExitStack() as stack:
        app = create_app(sessions)
        if mcp:
            from harness.toolserver.mcp import mcp_app  # noqa: PLC0415 - takes a second, and few runs need it

            app.router.routes.append(Route(MCP_PATH, await stack.enter_async_context(mcp_app(sessions))))
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
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server._serve([listener]))  # serve() would replace the process's signal handlers
        try:
            while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running
