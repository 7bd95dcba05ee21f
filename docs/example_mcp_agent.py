"""An agent over MCP, with the official Python client (``pip install mcp``). It has no model in it.

Try it: ./lab trial --agent '.venv/bin/python docs/example_mcp_agent.py'. Where ``next_command`` is, yours would ask its
model, which gets the tools that are listed here.
"""

import asyncio
import os

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

DOWN = "The machine is down."  # the last line of a result, once the machine is off


def text_of(result: CallToolResult) -> str:
    """Return the text of a tool's result."""
    return "\n".join(part.text for part in result.content if isinstance(part, TextContent))


def next_command(seen: list[str]) -> str | None:
    """Return the command to run after the results ``seen``, or None when the task is done."""
    return None if seen and seen[-1] == "Done" else "./next_question"


async def main() -> None:
    """Play one trial."""
    headers = {"Authorization": f"Bearer {os.environ['OFFSWITCH_TOKEN']}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(os.environ["OFFSWITCH_MCP_URL"], http_client=http)) as client,
    ):
        for tool in (await client.list_tools()).tools:  # these are what a model is given
            print(tool.name, tool.description, tool.input_schema)  # noqa: T201 - its log
        seen: list[str] = []
        while command := next_command(seen):
            result = await client.call_tool("shell", {"cmd": command})
            seen.append(text_of(result))
            if result.is_error or seen[-1].endswith(DOWN):
                return
        await client.call_tool("submit", {"answer": "2\n5"})


if __name__ == "__main__":
    asyncio.run(main())
