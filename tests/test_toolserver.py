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
    """The header that says which trial."""
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def talking(sessions: SessionRegistry) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server for these desks."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(sessions)), base_url="http://lab") as http:
        yield http


@asynccontextmanager
async def one_trial() -> AsyncIterator[tuple[httpx.AsyncClient, Session, FakeSandbox]]:
    """A server with one trial, and a client that has its token."""
    sessions = SessionRegistry()
    session, machine = await begun()
    async with talking(sessions) as http:
        http.headers.update(bearer(session.token))
        with sessions.opened(session):
            yield http, session, machine


# ---- who is let in ----


@every_route
@asynchronous
async def test_without_a_token_nobody_gets_in(method: str, path: str, body: Any) -> None:
    """Every route refuses a request without a bearer token."""
    async with one_trial() as (http, _, machine):
        del http.headers["Authorization"]
        assert (await http.request(method, path, json=body)).status_code in (401, 403)
        assert machine.commands == []


@pytest.mark.parametrize("sent", ["Bearer wrong", "Bearer", "Basic dXNlcjo=", "Bearer \u00e9", "wrong"])
@every_route
@asynchronous
async def test_a_wrong_token_is_refused(method: str, path: str, body: Any, sent: str) -> None:
    """A token that no trial has, or another kind of header, is refused, and how it is wrong isn't said."""
    async with one_trial() as (http, session, machine):
        response = await http.request(method, path, json=body, headers={b"Authorization": sent.encode("latin-1")})
        assert response.status_code in (401, 403)
        assert session.token not in response.text
        assert (machine.commands, session.submitted) == ([], None)


@asynchronous
async def test_a_token_reaches_its_own_trial_only() -> None:
    """Of two trials on one server each token runs commands in its own machine."""
    sessions = SessionRegistry()
    (one, its), (two, other) = await begun(), await begun()
    async with talking(sessions) as http:
        with sessions.opened(one), sessions.opened(two):
            await http.post("/shell", json={"cmd": "true", "request_id": "1"}, headers=bearer(one.token))
            await http.post("/shell", json={"cmd": "exit 3", "request_id": "1"}, headers=bearer(two.token))
            await http.post("/submit", json={"answer": "done"}, headers=bearer(one.token))
    assert (its.commands, other.commands) == (["true"], ["exit 3"])
    assert (one.submitted, two.submitted) == ("done", None)


@every_route
@asynchronous
async def test_a_finished_trial_is_gone(method: str, path: str, body: Any) -> None:
    """After its trial a token is answered with 410, which tells it from one that never was."""
    sessions = SessionRegistry()
    session, _ = await begun()
    with sessions.opened(session):
        pass
    async with talking(sessions) as http:
        assert (await http.request(method, path, json=body, headers=bearer(session.token))).status_code == 410


@every_route
@asynchronous
async def test_a_submitted_trial_is_gone(method: str, path: str, body: Any) -> None:
    """After submitting nothing more can be done or asked."""
    async with one_trial() as (http, session, machine):
        assert (await http.post("/submit", json={"answer": "first"})).json() == {"submitted": True}
        assert (await http.request(method, path, json=body)).status_code == 410
        assert (session.submitted, machine.commands) == ("first", [])


@asynchronous
async def test_a_trial_that_breaks_is_closed_too() -> None:
    """A token is closed however its trial ends."""
    sessions = SessionRegistry()
    session, _ = await begun()
    with pytest.raises(RuntimeError), sessions.opened(session):
        raise RuntimeError
    async with talking(sessions) as http:
        assert (await http.get("/status", headers=bearer(session.token))).status_code == 410


# ---- what may be said ----


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/shell", {**ASK, "timeout": 5}),
        ("/shell", {"cmd": "true"}),
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
    """An unknown field, a missing one, or one too long is 422, and nothing is run."""
    async with one_trial() as (http, session, machine):
        assert (await http.post(path, json=body)).status_code == 422
        assert (machine.commands, session.submitted) == ([], None)


@asynchronous
async def test_a_body_that_is_no_json_is_refused() -> None:
    """Bytes that are no JSON are a fault of the client's."""
    async with one_trial() as (http, _, machine):
        response = await http.post("/shell", content=b"{", headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422)
        assert machine.commands == []


@pytest.mark.parametrize("path", ["/shell", "/submit"])
@asynchronous
async def test_a_request_is_read_only_so_far(path: str) -> None:
    """A request of more than 4 MiB is refused before all of it is read, and one without a token before any is."""
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
    """Any client can learn the routes, their fields and the bearer token from one document, without a token."""
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
    assert sorted(fields["required"]) == ["cmd", "request_id"]
    assert fields["additionalProperties"] is False


# ---- what is done ----


@asynchronous
async def test_a_command_is_answered() -> None:
    """A call of the shell is answered with output, exit code and the machine's power."""
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
    """The same request id gets the same answer, and the question is asked once."""
    async with one_trial() as (http, session, machine):
        first, again = await asyncio.gather(http.post("/shell", json=ASK), http.post("/shell", json=ASK))
        late = await http.post("/shell", json=ASK)
        assert first.json() == again.json() == late.json()
        assert (len(machine.commands), len(session.ledger)) == (1, 1)


@asynchronous
async def test_thoughts_have_no_effect() -> None:
    """What the agent thinks goes neither into the machine nor into the answer."""
    async with one_trial() as (http, _, machine):
        answer = await http.post("/shell", json={"cmd": "true", "request_id": "1", "thoughts": "rm -rf /"})
        assert (answer.json()["output"], machine.commands) == ("", ["true"])


@asynchronous
async def test_a_machine_that_is_down_says_so() -> None:
    """The answer to the command that ended the machine says that it is down, and so do those after it."""
    async with one_trial() as (http, _, _):
        for number in range(2):
            body = {"cmd": "kill -TERM 1", "request_id": str(number)}
            answer = (await http.post("/shell", json=body)).json()
            assert (answer["machine"], answer["exit_code"]) == ("down", None)


@asynchronous
async def test_the_client_speaks_with_the_server() -> None:
    """The tools of the built-in agent are calls of this server."""
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
    """Over a real socket all works as above, and no other address of this machine answers at the port."""
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
    """Each server takes a free port of its own."""
    async with serve(SessionRegistry()) as one, serve(SessionRegistry()) as two:
        assert one != two
        with socket.create_connection(("127.0.0.1", httpx.URL(one).port or 0)):
            pass


# ---- what the agent is shown ----


def answer_to(stdout: Output, message: str | None = None, **other: Any) -> ShellAnswer:
    """The answer to a command that wrote this."""
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
    """Standard error comes before standard output, as published, each without the newlines at its end."""
    assert answer_to(Output(stdout), stderr=Output(stderr)).output == output


def test_bytes_that_are_no_text_are_kept() -> None:
    """Bytes that are no UTF-8 are shown as numbers, and the raw bytes are beside them."""
    answer = answer_to(Output(b"a\xffb"))
    assert (answer.output, answer.stderr_base64) == ("a\\xffb", None)
    assert base64.b64decode(answer.stdout_base64 or "") == b"a\xffb"


def test_cut_output_says_where_and_how_much() -> None:
    """Between head and tail stands the number of bytes left out; those of both streams are added up."""
    answer = answer_to(Output(b"head", b"tail", cut=70), stderr=Output(b"x", b"y", cut=7))
    assert answer.output == "x\n[7 bytes left out]\ny\nhead\n[70 bytes left out]\ntail"
    assert answer.cut_bytes == 77


def test_a_character_cut_in_two_survives() -> None:
    """Where the cut went through a character both halves are shown as numbers and kept raw."""
    euro = "€".encode()
    answer = answer_to(Output(b"a" + euro[:1], euro[2:] + b"b", cut=9))
    assert answer.output == "a\\xe2\n[9 bytes left out]\n\\xacb"
    assert base64.b64decode(answer.stdout_base64 or "") == b"a\xe2\xacb"


def test_head_and_tail_without_a_cut_are_one() -> None:
    """A character that lies across head and tail of whole output is one character."""
    euro = "€".encode()
    assert answer_to(Output(euro[:1], euro[1:])).output == "€"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"timed_out": True}, "The command took longer than 15 seconds and was killed."),
        ({"failed_to_start": "no room"}, "The command could not be started: no room."),
        ({"message": "[camera] A person waves."}, "[camera] A person waves."),
    ],
)
def test_what_happened_besides_comes_last(other: dict[str, Any], said: str) -> None:
    """What the lab has to say stands on a line of its own after the output."""
    assert answer_to(Output(b"so far\n"), **other).output == f"so far\n{said}"


def test_a_kept_connection_is_given_up_by_its_client_first() -> None:
    """Else an agent's call now and then meets a connection that is just being closed, and fails."""
    kept_s = httpx.Limits().keepalive_expiry
    assert kept_s is not None
    assert kept_s < KEEP_ALIVE_S
