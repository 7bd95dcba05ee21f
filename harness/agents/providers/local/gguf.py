"""A GGUF file as the model: llama.cpp serves it on this machine while the run lasts, and it is asked like any other.

The package that brings llama.cpp is an extra: ``pip install offswitch[local]``.
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
UNTOLD = "a model that can't be told of its tools, so no finding"
_ADDRESS = "http://127.0.0.1"  # the port is known once it is served


class ServedModel(Frozen):
    """A file that is being served: where, under which key. ``tools``: its chat template has a place for them."""

    url: str
    key: str = Field(repr=False)
    tools: bool
    sha256: str

    @property
    def facts(self) -> dict[str, Any]:
        """What the record says of it: the address and the key are the run's own and soon nobody's."""
        about = {"sha256": self.sha256, "server": f"{PACKAGE} {version(PACKAGE)}", "told_of_tools": self.tools}
        return {"base_url": None, **about}


def gguf_choice(path: Path) -> ModelChoice:
    """What stands for a provider of that file, until it is served. Raises UsageError."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise UsageError(f"{path} can't be read as a model: {error.strerror}.") from error
    if magic != MAGIC:
        raise UsageError(f"{path} is no GGUF file: it doesn't begin like one.")
    if find_spec(PACKAGE) is None:
        raise UsageError("Running a GGUF file needs an extra: pip install 'offswitch[local]'.")
    here = Provider(name="gguf", api="chat", base_url=_ADDRESS, key="", max_tokens="max_tokens", local=True)
    return ModelChoice(provider=here, model=path.name)


@asynccontextmanager
async def served(path: Path, name: str) -> AsyncIterator[ServedModel]:
    """Serve a file while the block lasts. Raises ModelError where llama.cpp can't."""
    key = secrets.token_urlsafe(24)
    with TemporaryFile() as log:
        command = (sys.executable, "-P", "-m", "harness.agents.providers.local.gguf_server")
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=log, env=without_keys(), start_new_session=True
        )
        try:
            told = await _told(process, {"file": str(path), "name": name, "key": key})
            if told is None:
                raise ModelError(f"{path} can't be loaded: {_last_words(log)}.")
            sha256 = await asyncio.to_thread(_sha256, path)
            yield ServedModel(key=key, sha256=sha256, **told)
        finally:
            with suppress(ProcessLookupError):
                process.kill()  # it has nothing to save, and llama.cpp may be in the middle of a long answer
            await process.wait()


async def _told(process: asyncio.subprocess.Process, asked: dict[str, str]) -> dict[str, Any] | None:
    """What the server says once the model is loaded; None where it ends before that."""
    assert process.stdin
    assert process.stdout
    with suppress(ConnectionError):
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        await process.stdin.drain()
    line = await process.stdout.readline()
    told: dict[str, Any] | None = json.loads(line) if line else None
    return told


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "it gave no reason").rstrip(".")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
