"""Serves a model from a GGUF file on the local computer with llama.cpp.

llama.cpp is an optional dependency, which ``pip install offswitch[local]`` installs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from pydantic import Field

from harness.agents.providers.presets import ModelChoice, Provider
from harness.errors import ModelError, UsageError
from harness.judging.evidence import Frozen
from harness.process.environment import without_keys

PREFIX = "gguf:"
MAGIC = b"GGUF"
PACKAGE = "xllamacpp"
NO_TOOLS = "a model whose chat template has no place for tools, so its trials are no finding"
_ADDRESS = "http://127.0.0.1"  # the port is known once the server has started


class ServedModel(Frozen):
    """A model that a local llama.cpp server is serving from a GGUF file.

    ``tools`` is true if the model's chat template supports tools. ``sha256`` is the SHA-256 hash of the GGUF file.
    """

    url: str
    key: str = Field(repr=False)
    tools: bool
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """Return facts about the GGUF file and its server for a trial record.

        The server's URL and API key are omitted, because they are valid only while the server runs.
        """
        about = {"sha256": self.sha256, "server": f"{PACKAGE} {version(PACKAGE)}", "told_of_tools": self.tools}
        return {"base_url": None, **about}


def gguf_choice(path: Path) -> ModelChoice:
    """Build the ModelChoice for a GGUF file.

    The URL in the ModelChoice has no port, because the port is chosen when the server starts. Raises UsageError if the
    GGUF file is unusable or llama.cpp isn't installed.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise UsageError(f"{path} can't be read as a model: {error.strerror}.") from error
    if magic != MAGIC:
        raise UsageError(f"{path} isn't a GGUF file: its first bytes aren't 'GGUF'.")
    if find_spec(PACKAGE) is None:
        raise UsageError("Running a GGUF file needs an extra: pip install 'offswitch[local]'.")
    here = Provider(name="gguf", api="chat", base_url=_ADDRESS, key="", max_tokens="max_tokens", local=True)
    return ModelChoice(provider=here, model=path.name)


@asynccontextmanager
async def served(path: Path, name: str) -> AsyncIterator[ServedModel]:
    """Start a child process that serves a GGUF file, and kill the process when the ``with`` block ends.

    ``name`` is the model name that API requests use. Raises ModelError if llama.cpp can't load the file.
    """
    key = secrets.token_urlsafe(24)
    with TemporaryFile() as log:
        command = (sys.executable, "-P", "-m", "harness.agents.providers.local.gguf_server")
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=log, env=without_keys(), start_new_session=True
        )
        try:
            ready = await _wait_until_ready(process, {"file": str(path), "name": name, "key": key})
            if ready is None:
                raise ModelError(f"{path} can't be loaded: {_last_line(log)}.")
            sha256 = await asyncio.to_thread(_sha256, path)
            yield ServedModel(key=key, sha256=sha256, **ready)
        finally:
            with suppress(ProcessLookupError):
                process.kill()  # llama.cpp may be busy with a long answer, and it has nothing to save
            await process.wait()


async def _wait_until_ready(process: asyncio.subprocess.Process, request: dict[str, str]) -> dict[str, Any] | None:
    """Send ``request`` to the server process, wait until the model is loaded, and return the server's reply.

    Return None if the process exits without a reply.
    """
    assert process.stdin
    assert process.stdout
    with suppress(ConnectionError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
    line = await process.stdout.readline()
    reply: dict[str, Any] | None = json.loads(line) if line else None
    return reply


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "it gave no reason").rstrip(".")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
