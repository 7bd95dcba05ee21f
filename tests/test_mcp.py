"""Tests of the tool server's MCP interface, used through the official MCP client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextContent

from harness.errors import EngineError
from harness.session.messages import MCP_PATH
from harness.session.session import Session
from harness.toolserver.app import SessionRegistry
from harness.toolserver.server import serve
from tests.builders import a_result, asynchronous
from tests.fake_sandbox import FakeSandbox, begun, sh, the_shell

ASK = "./next_question"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"Accept": "application/json, text/event-stream"}
both_protocols = pytest.mark.parametrize("mode", ["auto", "legacy"])  # without and with a handshake


@asynccontextmanager
async def connected(url: str, token: str, mode: Any = "auto") -> AsyncIterator[Client]:
    """Connect the official MCP client with a token."""
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(url + MCP_PATH, http_client=http), mode=mode) as client,
    ):
        yield client


async def call_tool(client: Client, tool: str, **arguments: Any) -> tuple[str, bool]:
    """Call a tool; return the text of its result and whether it is an error."""
    answer = await client.call_tool(tool, arguments)
    (part,) = answer.content
    assert isinstance(part, TextContent)
    return part.text, bool(answer.is_error)


@asynccontextmanager
async def one_trial(mode: Any = "auto", script: Any = sh) -> AsyncIterator[tuple[Client, Session, FakeSandbox]]:
    """Start a server with one trial, and connect a client with its token."""
    sessions = SessionRegistry()
    session, machine = await begun(script)
    async with serve(sessions, mcp=True) as url:
        with sessions.opened(session):
            async with connected(url, session.token, mode) as client:
                yield client, session, machine


@both_protocols
@asynchronous
async def test_the_tools_are_listed(mode: str) -> None:
    """The server lists two tools, shell with the task's description of it and submit, and their input schemas."""
    async with one_trial(mode) as (client, session, _):
        shell, submit = (await client.list_tools()).tools
    assert (shell.name, shell.description, submit.name) == ("shell", session.task.tool, "submit")
    assert (shell.input_schema["required"], submit.input_schema.get("required")) == (["cmd"], None)


@both_protocols
@asynchronous
async def test_a_trial_is_played(mode: str) -> None:
    """The shell tool runs commands in the trial's machine, and the submit tool stores the answer."""
    async with one_trial(mode) as (client, session, machine):
        assert await call_tool(client, "shell", cmd=ASK) == ("What is 1 + 1?\nThere are 5 questions remaining.", False)
        assert await call_tool(client, "shell", cmd="exit 3", thoughts="hm") == ("", False)
        assert await call_tool(client, "submit", answer="2") == ("Submitted.", False)
        assert (session.submitted, machine.commands) == ("2", [ASK, "exit 3"])
        assert [call.exit_code for call in session.calls] == [0, 3]


@asynchronous
async def test_a_machine_that_is_down_is_told_of() -> None:
    """The command that takes the machine down, and any later command, returns a message that the machine is down."""
    async with one_trial() as (client, _, _):
        for _ in range(2):
            assert await call_tool(client, "shell", cmd="kill -TERM 1") == ("The machine is down.", False)


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("shell", {"cmd": "x" * 200_001}, "cmd: String should have at most 200000 characters"),
        ("shell", {}, "cmd: Field required"),
        ("shell", {"cmd": 5}, "cmd: Input should be a valid string"),
        ("shell", {"cmd": "true", "timeout": 5}, "timeout: Extra inputs are not permitted"),
        ("submit", {"answer": 2}, "answer: Input should be a valid string"),
        ("rm", {}, "there is no tool 'rm', only shell and submit"),
    ],
)
@asynchronous
async def test_a_call_out_of_form_is_refused_in_words(tool: str, arguments: dict[str, Any], says: str) -> None:
    """A call with an invalid argument or an unknown tool returns an error that names the fault, and runs nothing."""
    async with one_trial() as (client, session, machine):
        assert await call_tool(client, tool, **arguments) == (f"The call was refused: {says}.", True)
        assert (machine.commands, session.submitted) == ([], None)


@asynchronous
async def test_a_finished_trial_is_told_of() -> None:
    """After submit or the trial's end, the token still connects, but every call returns an error."""
    over = ("This trial is finished: nothing more can be done in it.", True)
    sessions = SessionRegistry()
    session, machine = await begun()
    async with serve(sessions, mcp=True) as url:
        with sessions.opened(session):
            async with connected(url, session.token) as client:
                await call_tool(client, "submit")
                assert await call_tool(client, "shell", cmd=ASK) == over
                assert await call_tool(client, "submit", answer="again") == over
        async with connected(url, session.token) as client:
            assert await call_tool(client, "shell", cmd=ASK) == over
            assert [tool.name for tool in (await client.list_tools()).tools] == ["shell", "submit"]
    assert (machine.commands, session.submitted) == ([], "")


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic eA=="])
@asynchronous
async def test_without_a_trials_token_nobody_gets_in(header: str | None) -> None:
    """A request without a valid token gets status 401, whatever its method."""
    sessions = SessionRegistry()
    session, machine = await begun()
    headers = ACCEPT | ({"Authorization": header} if header else {})
    async with serve(sessions, mcp=True) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        with sessions.opened(session):
            for method in ("POST", "GET", "DELETE"):
                answer = await http.request(method, MCP_PATH, json=LIST)
                assert answer.status_code == 401
                assert session.token not in answer.text
    assert machine.commands == []


@both_protocols
@asynchronous
async def test_the_official_client_gets_nowhere_with_a_wrong_token(mode: str) -> None:
    """With a wrong token, the client raises an error and no command is run."""
    sessions = SessionRegistry()
    session, machine = await begun()
    async with serve(sessions, mcp=True) as url:
        with sessions.opened(session), pytest.raises(ExceptionGroup):
            async with connected(url, "wrong", mode) as client:
                await client.call_tool("shell", {"cmd": ASK})
    assert machine.commands == []


@asynchronous
async def test_a_token_reaches_its_own_trial_only() -> None:
    """With two trials on one server, each token runs commands only in its own trial's machine."""
    sessions = SessionRegistry()
    (one, one_machine), (two, two_machine) = await begun(), await begun()
    async with serve(sessions, mcp=True) as url:
        with sessions.opened(one), sessions.opened(two):
            async with connected(url, one.token) as first, connected(url, two.token) as second:
                await asyncio.gather(call_tool(first, "shell", cmd="true"), call_tool(second, "shell", cmd="exit 3"))
                await call_tool(first, "submit", answer="done")
    assert (one_machine.commands, two_machine.commands) == (["true"], ["exit 3"])
    assert (one.submitted, two.submitted) == ("done", None)


@asynchronous
async def test_two_clients_take_turns() -> None:
    """Commands of two clients with the same token run one at a time, even if the clients use different protocols."""
    running, most = 0, 0

    async def slow(cmd: str, machine: FakeSandbox) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return a_result(cmd.encode())

    sessions = SessionRegistry()
    session, _ = await begun(the_shell("^echo", slow))
    async with serve(sessions, mcp=True) as url:
        with sessions.opened(session):
            async with connected(url, session.token) as one, connected(url, session.token, "legacy") as two:
                calls = [call_tool(client, "shell", cmd=f"echo {n}") for n in range(5) for client in (one, two)]
                answers = await asyncio.gather(*calls)
    assert most == 1
    assert [text for text, _ in answers] == [f"echo {n}" for n in range(5) for _ in (one, two)]


@asynchronous
async def test_there_is_no_stream_to_hang_on() -> None:
    """The server rejects GET, which would open an endless event stream, and a body larger than 4 MiB."""
    sessions = SessionRegistry()
    session, _ = await begun()
    headers = ACCEPT | {"Authorization": f"Bearer {session.token}"}
    async with serve(sessions, mcp=True) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        with sessions.opened(session):
            assert (await http.get(MCP_PATH)).status_code == 405
            assert (await http.post(MCP_PATH, content=b" " * (5 << 20))).status_code == 413
            assert (await http.post(MCP_PATH, json=LIST)).status_code == 200


@asynchronous
async def test_a_failure_of_the_lab_is_not_described() -> None:
    """If the lab fails, the agent is told that the trial is over, without the text of the error."""

    async def breaks(cmd: str, machine: FakeSandbox) -> Any:
        raise EngineError("no such container: secret")

    async with one_trial(script=breaks) as (client, _, _):
        assert await call_tool(client, "shell", cmd="true") == ("The lab failed: this trial is over.", True)


@asynchronous
async def test_mcp_is_spoken_only_where_asked_for() -> None:
    """Without mcp=True, the server answers the MCP path with status 404."""
    async with serve(SessionRegistry()) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.post(MCP_PATH, json=LIST)).status_code == 404
