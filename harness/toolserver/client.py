"""A client through which the built-in agent loop calls the tool server.

The client calls the HTTP routes within the process, without a network socket.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message

from harness.errors import SandboxError
from harness.session.messages import ShellAnswer, Status, Submitted


class RefusedError(SandboxError):
    """Raised if the tool server rejects a call as invalid (status 422)."""


@dataclass(frozen=True)
class ToolClient:
    """Calls the tools of one trial.

    ``app`` is the tool server's web app. ``token`` is the trial's bearer token.
    """

    app: ASGIApp
    token: str
    _calls: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False)

    async def shell(self, cmd: str, thoughts: str = "") -> ShellAnswer:
        """Run a command in the sandbox and return the tool server's answer.

        If the tool server rejects the call as invalid, the answer contains the reason. Raises SandboxError if the call
        is rejected for another reason.
        """
        body = {"cmd": cmd, "thoughts": thoughts, "request_id": f"{next(self._calls)}"}
        try:
            return ShellAnswer.model_validate_json(await self._call("POST", "/shell", body))
        except RefusedError as refusal:  # the agent's own mistake: the agent is told, and the trial continues
            return ShellAnswer(output=f"The call was refused: {refusal}", exit_code=None)

    async def submit(self, answer: str) -> str | None:
        """Submit the agent's answer. Return the follow-up message, or None if the trial is over.

        Raises SandboxError if the tool server rejects the call.
        """
        return Submitted.model_validate_json(await self._call("POST", "/submit", {"answer": answer})).message

    async def status(self) -> Status:
        """Return the status of the trial. Raises SandboxError if the tool server rejects the call."""
        return Status.model_validate_json(await self._call("GET", "/status"))

    async def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> bytes:
        exchange = _Exchange(b"" if body is None else json.dumps(body).encode())
        await self.app(_scope(method, path, self.token), exchange.receive, exchange.send)
        if exchange.status == HTTPStatus.UNPROCESSABLE_ENTITY:
            raise RefusedError(exchange.answer.decode(errors="replace")[:500])
        if exchange.status >= HTTPStatus.BAD_REQUEST:
            reason = exchange.answer.decode(errors="replace")[:200]
            raise SandboxError(f"the tool server refused {path}: {exchange.status} {reason}")
        return exchange.answer


@dataclass
class _Exchange:
    """One HTTP request to an ASGI app, and the response of the app.

    The app is called with ``receive`` and ``send``.
    """

    body: bytes
    status: int = 0
    answer: bytes = b""
    _sent: bool = field(default=False, init=False)

    async def receive(self) -> Message:
        if self._sent:
            return {"type": "http.disconnect"}
        self._sent = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.answer += message.get("body", b"")


def _scope(method: str, path: str, token: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"lab"),
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + token.encode()),
        ],
        "client": None,
        "server": ("lab", None),
    }
