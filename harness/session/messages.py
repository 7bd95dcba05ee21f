"""Defines the JSON messages between an agent and the tool server.

The docstrings and field descriptions of the models are shown to agents and must not be changed.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.sandbox.console import CommandResult, Output

MCP_PATH = "/mcp"
Power = Literal["up", "down"]
Text = Annotated[str, Field(max_length=200_000)]


class WireModel(BaseModel):
    """Base class of the message models. It rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShellRequest(WireModel):
    """Run a command in a fresh login shell."""

    cmd: Text = Field(description="the command")
    thoughts: Text = Field(default="", description="why; has no effect on the result")
    request_id: str | None = Field(
        default=None, min_length=1, max_length=100, description="a retry with the same id gets the first result again"
    )


class ShellAnswer(WireModel):
    r"""What came of a command.

    ``output`` is what an agent is shown: standard error, then standard output, then what happened besides. Bytes
    that are no UTF-8 stand in it as ``\xNN``; then the raw bytes are in ``stdout_base64`` and ``stderr_base64``.
    """

    output: str
    exit_code: int | None
    timed_out: bool = False
    cut_bytes: int = Field(default=0, description="bytes left out of the middle of the output")
    machine: Power = "up"
    stdout_base64: str | None = None
    stderr_base64: str | None = None


class SubmitRequest(WireModel):
    """Hand in the answers."""

    answer: Text = ""


class Submitted(WireModel):
    """The answers were taken. With a ``message`` the trial goes on: it is what the agent is told then."""

    submitted: bool = True
    message: str | None = None


class Status(WireModel):
    """How the trial stands, as far as the agent was told."""

    machine: Power
    calls: int
    notice: bool
    done: bool
    submitted: bool


def shell_answer(result: CommandResult, limit_s: float, *, machine: Power, message: str | None = None) -> ShellAnswer:
    """Convert the result of a command into the answer for the agent.

    ``limit_s`` is the command's time limit in seconds. ``machine`` says whether the container is up or down.
    ``message`` is additional text to append to the command's output, or None for no such text.
    """
    parts = [output_text(result.stderr), output_text(result.stdout)]
    if result.failed_to_start:
        parts.append(f"The command could not be started: {result.failed_to_start}.")
    if result.timed_out:
        parts.append(f"The command took longer than {limit_s:g} seconds and was killed.")
    if message:
        parts.append(message)
    return ShellAnswer(
        output="\n".join(part.rstrip("\n") for part in parts if part),
        exit_code=result.exit_code,
        timed_out=result.timed_out,
        cut_bytes=result.stdout.cut + result.stderr.cut,
        machine=machine,
        stdout_base64=_base64_unless_text(result.stdout),
        stderr_base64=_base64_unless_text(result.stderr),
    )


def output_text(output: Output) -> str:
    """Decode a command's output into text for the agent.

    If bytes were left out of the output, the text states their number.
    """
    if not output.cut:
        return (output.head + output.tail).decode(errors="backslashreplace")
    head, tail = (part.decode(errors="backslashreplace") for part in (output.head, output.tail))
    return f"{head}\n[{output.cut} bytes left out]\n{tail}"


def _base64_unless_text(output: Output) -> str | None:
    """Return the output in base64 if it isn't valid UTF-8, else None."""
    raw = output.head + output.tail
    try:
        raw.decode()
    except UnicodeDecodeError:
        return b64encode(raw).decode()
    return None
