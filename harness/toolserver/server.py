"""Running the tool server: for the built-in agents within the process, for others on loopback too."""

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

KEPT_OPEN_S = 60  # longer than any client keeps a connection: what it sends must not meet one that is being closed
CLOSING_S = 5  # a client that is in the middle of a request gets so long when the server stops


@dataclass(frozen=True)
class ToolServer:
    """The tool server of a process; ``url`` is where programs outside it reach it, if they do."""

    app: ASGIApp
    url: str | None = None


@asynccontextmanager
async def tool_server(sessions: SessionRegistry, *, outside: bool = False) -> AsyncIterator[ToolServer]:
    """The server for these desks while the block runs; ``outside``: on a loopback port, and in MCP's words too."""
    app = create_app(sessions)
    if not outside:
        yield ToolServer(app)
        return
    async with serve(sessions, mcp=True) as url:
        yield ToolServer(app, url)


@asynccontextmanager
async def serve(sessions: SessionRegistry, *, mcp: bool = False) -> AsyncIterator[str]:
    """Serve on a free loopback port, at MCP_PATH in MCP's words too where asked; yields the base URL."""
    import uvicorn  # noqa: PLC0415 - few runs serve anybody outside

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
            timeout_keep_alive=KEPT_OPEN_S,
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
