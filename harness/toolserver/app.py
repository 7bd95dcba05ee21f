"""The tool server's routes. Each one parses, makes one call, and answers."""

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast, get_type_hints

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness import __version__
from harness.session.messages import ShellAnswer, ShellRequest, Status, SubmitRequest, Submitted, WireModel
from harness.session.session import Session, TrialOverError

MAX_BODY = 4 << 20
REMEMBERED = 1_000  # tokens of finished trials; one from longer ago is answered like one that never was


class SessionRegistry:
    """The sessions a server serves, each behind its own token."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._closed: deque[bytes] = deque(maxlen=REMEMBERED)

    @contextmanager
    def opened(self, session: Session) -> Iterator[None]:
        """Let the holder of the session's token in; after the block the token is answered with 410."""
        self._open[session.token] = session
        try:
            yield
        finally:
            del self._open[session.token]
            self._closed.append(_digest(session.token))

    def find(self, token: str) -> Session | None:
        """The session behind a token, or None where its trial is finished. Raises HTTPException 401."""
        # How long a look takes tells nothing of how much of a guess was right: a dictionary compares those only whose
        # hashes, which a secret of the process goes into, are the same; and the digests of others are no guesses.
        if session := self._open.get(token):
            session.listener.came()
            return None if session.finished else session
        if _digest(token) in self._closed:
            return None
        raise HTTPException(401, "no trial has this token", headers={"WWW-Authenticate": "Bearer"})


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


class RequireSession(SecurityBase):
    """Lets in who holds a trial's token: gives its session. Raises HTTPException 401 and 403, TrialOverError."""

    def __init__(self, sessions: SessionRegistry) -> None:
        self._desks, self._bearer = sessions, HTTPBearer(description="the trial's token")
        self.model, self.scheme_name = self._bearer.model, self._bearer.scheme_name

    async def __call__(self, request: Request) -> Session:
        """The session of whoever sent this request."""
        scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
        if scheme.lower() != "bearer" or not token:
            await self._bearer(request)  # which refuses it
        found = self._desks.find(token)
        if found is None:
            raise TrialOverError
        return found


class FastRoute(APIRoute):
    """A route that reads its message and writes its answer by their own models: ``route(request, desk) -> answer``.

    FastAPI's way takes as long as a look at the machine, for much that our routes don't need. They are still
    documented by their signatures.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door = cast("RequireSession", self.dependant.dependencies[0].call)
        self._message: type[WireModel] | None = get_type_hints(self.endpoint).get("request")
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: whoever has no token is sent away before a byte of the body is read."""
        sent, message = Request(scope, receive), self._message
        session = await self._door(sent)
        called = self.endpoint(_read(message, await sent.body()), session) if message else self.endpoint(session)
        answer: WireModel = await called
        content = answer.model_dump_json(exclude_none=self.response_model_exclude_none)
        await Response(content, media_type="application/json")(scope, receive, send)


class FastApp(FastAPI):
    """A server whose requests pass what its routes need, and nothing else on their way."""

    def build_middleware_stack(self) -> ASGIApp:
        """What a request passes: bugs are answered with 500, bodies bounded, and failures answered as they should."""
        answering = ExceptionMiddleware(self.router, handlers=self.exception_handlers)
        return ServerErrorMiddleware(BoundedBodies(answering))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, of which no telemetry is told."""
        await Starlette.__call__(self, scope, receive, send)


def _read(message: type[WireModel], body: bytes) -> WireModel:
    """Read a request's message. Raises RequestValidationError."""
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        wrong = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(wrong) from error


class BoundedBodies:
    """Reads no more than MAX_BODY bytes of a request, whoever sends it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                raise HTTPException(413, f"a request has at most {MAX_BODY} bytes")
            return message

        await self._app(scope, bounded, send)


def create_app(sessions: SessionRegistry) -> FastAPI:
    """The server for these sessions. It has no state of its own."""
    app = FastApp(
        title="Offswitch tool server",
        version=__version__,
        summary="A shell in one sandbox, and the end of its trial. The bearer token says which trial.",
    )

    app.router.route_class = FastRoute

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, error: RequestValidationError) -> JSONResponse:
        """Say what is wrong without repeating what was sent: it may be no text at all."""
        wrong = [{"loc": each["loc"], "msg": each["msg"], "type": each["type"]} for each in error.errors()]
        return JSONResponse({"detail": wrong}, status_code=422)

    @app.exception_handler(TrialOverError)
    async def over(_: Request, error: TrialOverError) -> JSONResponse:
        """The trial may also end while a call waits for its turn."""
        return JSONResponse({"detail": str(error)}, status_code=410)

    Desk = Annotated[Session, Depends(RequireSession(sessions))]  # noqa: N806 - a type

    @app.post("/shell")
    async def shell(request: ShellRequest, session: Desk) -> ShellAnswer:
        """Run a command in a fresh login shell in the sandbox."""
        return await session.shell(request.request_id, request.cmd, request.thoughts)

    @app.post("/submit", response_model_exclude_none=True)
    async def submit(request: SubmitRequest, session: Desk) -> Submitted:
        """Hand in the answers, which ends the trial unless the answer holds a message."""
        return Submitted(message=await session.submit(request.answer))

    @app.get("/status")
    async def status(session: Desk) -> Status:
        """How the trial stands."""
        return session.status()

    app.router.routes.sort(key=lambda each: not isinstance(each, FastRoute))  # they are looked through in order
    return app
