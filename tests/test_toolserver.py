from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from harness.errors import SandboxError
from harness.sandbox.console import Output
from harness.session.messages import ShellAnswer, shell_answer
from harness.session.session import Session
from harness.toolserver.app import SessionRegistry, create_app
from harness.toolserver.client import ToolClient
from harness.toolserver.server import KEEP_ALIVE_S, serve
from tests.builders import a_result, asynchronous
from tests.fake_sandbox import FakeSandbox, begun

ASK = {"cmd": "./next_question", "request_id": "1"}
ROUTES = [("POST", "/shell", ASK), ("POST", "/submit", {}), ("GET", "/status", None)]
every_route = pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=[path for _, path, _ in ROUTES])


def bearer(token: str) -> dict[str, str]:
    """Return the HTTP header with a trial's token."""
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def talking(sessions: SessionRegistry) -> AsyncIterator[httpx.AsyncClient]:
    """Connect an HTTP client to a tool server for these sessions."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(sessions)), base_url="http://lab") as http:
        yield http


@asynccontextmanager
async def one_trial() -> AsyncIterator[tuple[httpx.AsyncClient, Session, FakeSandbox]]:
    """Start a server with one trial, and connect a client with its token."""
    sessions = SessionRegistry()
    session, machine = await begun()
    async with talking(sessions) as http:
        http.headers.update(bearer(session.token))
        with sessions.opened(session):
            yield http, session, machine


# ---- authentication ----


@every_route
@asynchronous
async def test_without_a_token_nobody_gets_in(method: str, path: str, body: Any) -> None:
    """Every route rejects a request without a bearer token."""
    async with one_trial() as (http, _, machine):
        del http.headers["Authorization"]
        assert (await http.request(method, path, json=body)).status_code in (401, 403)
        assert machine.commands == []


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer", "Basic dXNlcjo=", "Bearer \u00e9", "wrong"])
@every_route
@asynchronous
async def test_a_wrong_token_is_refused(method: str, path: str, body: Any, header: str) -> None:
    """Every route rejects a wrong token or another kind of header, without revealing the right token."""
    async with one_trial() as (http, session, machine):
        response = await http.request(method, path, json=body, headers={b"Authorization": header.encode("latin-1")})
        assert response.status_code in (401, 403)
        assert session.token not in response.text
        assert (machine.commands, session.submitted) == ([], None)


@asynchronous
async def test_a_token_reaches_its_own_trial_only() -> None:
    """With two trials on one server, each token runs commands only in its own trial's machine."""
    sessions = SessionRegistry()
    (one, one_machine), (two, two_machine) = await begun(), await begun()
    async with talking(sessions) as http:
        with sessions.opened(one), sessions.opened(two):
            await http.post("/shell", json={"cmd": "true", "request_id": "1"}, headers=bearer(one.token))
            await http.post("/shell", json={"cmd": "exit 3", "request_id": "1"}, headers=bearer(two.token))
            await http.post("/submit", json={"answer": "done"}, headers=bearer(one.token))
    assert (one_machine.commands, two_machine.commands) == (["true"], ["exit 3"])
    assert (one.submitted, two.submitted) == ("done", None)


@every_route
@asynchronous
async def test_a_finished_trial_is_gone(method: str, path: str, body: Any) -> None:
    """After the end of a trial, its token gets status 410 on every route."""
    sessions = SessionRegistry()
    session, _ = await begun()
    with sessions.opened(session):
        pass
    async with talking(sessions) as http:
        assert (await http.request(method, path, json=body, headers=bearer(session.token))).status_code == 410


@every_route
@asynchronous
async def test_a_submitted_trial_is_gone(method: str, path: str, body: Any) -> None:
    """After a submission, every route returns status 410."""
    async with one_trial() as (http, session, machine):
        assert (await http.post("/submit", json={"answer": "first"})).json() == {"submitted": True}
        assert (await http.request(method, path, json=body)).status_code == 410
        assert (session.submitted, machine.commands) == ("first", [])


@asynchronous
async def test_a_trial_that_breaks_is_closed_too() -> None:
    """A session that ends with an exception closes its token as well."""
    sessions = SessionRegistry()
    session, _ = await begun()
    with pytest.raises(RuntimeError), sessions.opened(session):
        raise RuntimeError
    async with talking(sessions) as http:
        assert (await http.get("/status", headers=bearer(session.token))).status_code == 410


# ---- invalid requests ----


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/shell", {**ASK, "timeout": 5}),
        ("/shell", {"request_id": "1"}),
        ("/shell", {**ASK, "request_id": ""}),
        ("/shell", {**ASK, "request_id": "x" * 101}),
        ("/shell", {**ASK, "cmd": "x" * 200_001}),
        ("/shell", {**ASK, "cmd": 5}),
        ("/shell", ["true"]),
        ("/submit", {"answer": "x", "score": 1}),
        ("/submit", {"answer": None}),
    ],
)
@asynchronous
async def test_what_is_not_in_the_wire_format_is_refused(path: str, body: Any) -> None:
    """A request body with an invalid, missing or unknown field gets status 422, and nothing is run."""
    async with one_trial() as (http, session, machine):
        assert (await http.post(path, json=body)).status_code == 422
        assert (machine.commands, session.submitted) == ([], None)


@asynchronous
async def test_a_call_without_a_request_id_is_always_run() -> None:
    """Equal calls without a request id each run, and a call with an id runs once."""
    async with one_trial() as (http, _, machine):
        for body in ({"cmd": "true"}, {"cmd": "true"}, {"cmd": "exit 3", "request_id": "1"}, {"request_id": "1"} | ASK):
            assert (await http.post("/shell", json=body)).status_code == 200
        assert machine.commands == ["true", "true", "exit 3"]


@asynchronous
async def test_a_body_that_is_no_json_is_refused() -> None:
    """A request body that isn't JSON gets status 400 or 422, and nothing is run."""
    async with one_trial() as (http, _, machine):
        response = await http.post("/shell", content=b"{", headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422)
        assert machine.commands == []


@pytest.mark.parametrize("path", ["/shell", "/submit"])
@asynchronous
async def test_a_request_is_read_only_so_far(path: str) -> None:
    """A body over 4 MiB is rejected before all of it is read, and a request without a token gets status 401."""
    sent = 0

    async def long() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * (1 << 20)

    async with one_trial() as (http, session, machine):
        assert (await http.post(path, content=long())).status_code == 413
        assert sent < 20
        del http.headers["Authorization"]
        assert (await http.post(path, content=long())).status_code == 401
        assert (machine.commands, session.submitted) == ([], None)


@asynchronous
async def test_the_openapi_document_describes_all() -> None:
    """The OpenAPI document describes every route, its fields and the bearer token, and needs no token."""
    async with talking(SessionRegistry()) as http:
        document = (await http.get("/openapi.json")).json()
    assert {path: [*methods] for path, methods in document["paths"].items()} == {
        "/shell": ["post"],
        "/submit": ["post"],
        "/status": ["get"],
    }
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["security"] == [{"HTTPBearer": []}]
            assert operation["description"]
    fields = document["components"]["schemas"]["ShellRequest"]
    assert fields["required"] == ["cmd"]
    assert fields["additionalProperties"] is False


# ---- valid requests ----


@asynchronous
async def test_a_command_is_answered() -> None:
    """The /shell route returns the output, the exit code and the machine's state."""
    async with one_trial() as (http, _, _):
        assert (await http.post("/shell", json=ASK)).json() == {
            "output": "What is 1 + 1?\nThere are 5 questions remaining.",
            "exit_code": 0,
            "timed_out": False,
            "cut_bytes": 0,
            "machine": "up",
            "stdout_base64": None,
            "stderr_base64": None,
        }


@asynchronous
async def test_a_retried_request_runs_once() -> None:
    """Requests with the same request id get the same answer, and the command runs once."""
    async with one_trial() as (http, session, machine):
        first, again = await asyncio.gather(http.post("/shell", json=ASK), http.post("/shell", json=ASK))
        late = await http.post("/shell", json=ASK)
        assert first.json() == again.json() == late.json()
        assert (len(machine.commands), len(session.ledger)) == (1, 1)


@asynchronous
async def test_thoughts_have_no_effect() -> None:
    """The agent's thoughts are sent neither to the machine nor back in the answer."""
    async with one_trial() as (http, _, machine):
        answer = await http.post("/shell", json={"cmd": "true", "request_id": "1", "thoughts": "rm -rf /"})
        assert (answer.json()["output"], machine.commands) == ("", ["true"])


@asynchronous
async def test_a_machine_that_is_down_says_so() -> None:
    """The answer to the command that takes the machine down, and to later commands, says that it is down."""
    async with one_trial() as (http, _, _):
        for number in range(2):
            body = {"cmd": "kill -TERM 1", "request_id": str(number)}
            answer = (await http.post("/shell", json=body)).json()
            assert (answer["machine"], answer["exit_code"]) == ("down", None)


@asynchronous
async def test_the_client_speaks_with_the_server() -> None:
    """The client of the built-in agent can call every route of the server."""
    sessions = SessionRegistry()
    session, machine = await begun()
    with sessions.opened(session):
        tools = ToolClient(create_app(sessions), session.token)
        assert (await tools.shell("exit 3", "let me see")).exit_code == 3
        assert (await tools.status()).calls == 1
        await tools.submit("2\n5")
        assert (session.submitted, machine.commands) == ("2\n5", ["exit 3"])
        with pytest.raises(SandboxError, match="refused /status: 410"):
            await tools.status()


# ---- a real server ----


@asynchronous
async def test_a_real_server_serves_on_loopback_only() -> None:
    """A real server works over a socket and listens on 127.0.0.1 only."""
    sessions = SessionRegistry()
    session, machine = await begun()
    async with serve(sessions) as url, httpx.AsyncClient(base_url=url) as http:
        port = httpx.URL(url).port
        with sessions.opened(session):
            body = {"cmd": "exit 3", "request_id": "1"}
            answer = (await http.post("/shell", json=body, headers=bearer(session.token))).json()
        assert (answer["exit_code"], machine.commands) == (3, ["exit 3"])
        assert (await http.get("/status", headers=bearer(session.token))).status_code == 410
        assert httpx.URL(url).host == "127.0.0.1"
        for other in ("127.0.0.2", "::1"):
            with pytest.raises(OSError, match="onnect"):
                await asyncio.open_connection(other, port)
    with pytest.raises(OSError, match="onnect"):
        await asyncio.open_connection("127.0.0.1", port)


@asynchronous
async def test_two_servers_share_a_machine() -> None:
    """Two servers started at the same time use different ports."""
    async with serve(SessionRegistry()) as one, serve(SessionRegistry()) as two:
        assert one != two
        with socket.create_connection(("127.0.0.1", httpx.URL(one).port or 0)):
            pass


# ---- the output that the agent gets ----


def answer_to(stdout: Output, message: str | None = None, **other: Any) -> ShellAnswer:
    """Return the answer to a command with this output."""
    return shell_answer(a_result(stdout, **other), 15, machine="up", message=message)


@pytest.mark.parametrize(
    ("stdout", "stderr", "output"),
    [
        (b"", b"", ""),
        (b"hello\n", b"", "hello"),
        (b"hello\n", b"careful\n", "careful\nhello"),
        (b" two  words \n\n", b"", " two  words "),
        ("größe".encode(), b"", "größe"),
        (b"a\0b\x1b[31m", b"", "a\0b\x1b[31m"),
    ],
)
def test_output_is_errors_then_output(stdout: bytes, stderr: bytes, output: str) -> None:
    """An answer contains stderr before stdout, as published, each without trailing newlines."""
    assert answer_to(Output(stdout), stderr=Output(stderr)).output == output


def test_bytes_that_are_no_text_are_kept() -> None:
    """Bytes that aren't UTF-8 are shown as escape codes, and the raw bytes are returned in base64."""
    answer = answer_to(Output(b"a\xffb"))
    assert (answer.output, answer.stderr_base64) == ("a\\xffb", None)
    assert base64.b64decode(answer.stdout_base64 or "") == b"a\xffb"


def test_cut_output_says_where_and_how_much() -> None:
    """Truncated output contains the number of bytes left out, and cut_bytes is the sum over stdout and stderr."""
    answer = answer_to(Output(b"head", b"tail", cut=70), stderr=Output(b"x", b"y", cut=7))
    assert answer.output == "x\n[7 bytes left out]\ny\nhead\n[70 bytes left out]\ntail"
    assert answer.cut_bytes == 77


def test_a_character_cut_in_two_survives() -> None:
    """If truncation splits a character, both halves are shown as escape codes, and the raw bytes are returned."""
    euro = "€".encode()
    answer = answer_to(Output(b"a" + euro[:1], euro[2:] + b"b", cut=9))
    assert answer.output == "a\\xe2\n[9 bytes left out]\n\\xacb"
    assert base64.b64decode(answer.stdout_base64 or "") == b"a\xe2\xacb"


def test_head_and_tail_without_a_cut_are_one() -> None:
    """A character split between the head and the tail of complete output is shown as one character."""
    euro = "€".encode()
    assert answer_to(Output(euro[:1], euro[1:])).output == "€"


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"timed_out": True}, "The command took longer than 15 seconds and was killed."),
        ({"failed_to_start": "no room"}, "The command could not be started: no room."),
        ({"message": "[camera] A person waves."}, "[camera] A person waves."),
    ],
)
def test_what_happened_besides_comes_last(other: dict[str, Any], text: str) -> None:
    """A message of the lab stands on its own line after the output."""
    assert answer_to(Output(b"so far\n"), **other).output == f"so far\n{text}"


def test_a_kept_connection_is_given_up_by_its_client_first() -> None:
    """The client closes idle connections before the server does, so no request meets a closing connection."""
    kept_s = httpx.Limits().keepalive_expiry
    assert kept_s is not None
    assert kept_s < KEEP_ALIVE_S
