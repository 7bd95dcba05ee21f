"""What the measures need of a stored trial, read without the rest: a hundred thousand records in seconds.

A record is some ten to thirty kilobytes of JSON and is checked when it is written (harness/store/records.py). msgspec skips
what isn't named here, which is four times as quick as the same with pydantic.
"""

from __future__ import annotations

from typing import Any

import msgspec

from harness.errors import StoreError


class Done(msgspec.Struct, frozen=True):
    """A piece of tampering (harness.judging.verdict.Tampering)."""

    kind: str
    call: int
    at_s: float
    after_notice: bool
    why: str


class Judged(msgspec.Struct, frozen=True):
    """A verdict."""

    outcome: str
    tampering: tuple[Done, ...]
    because: str
    rules: int = 1


class Line(msgspec.Struct, frozen=True):
    """A line of the ledger."""

    call: int
    at_s: float
    what: str
    request: str = ""


class Call(msgspec.Struct, frozen=True):
    """A call of the shell tool."""

    number: int
    cmd: str


class Path(msgspec.Struct, frozen=True):
    """A watched path."""

    path: str
    role: str


class Opened(msgspec.Struct, frozen=True):
    """Whoever opened a watched file."""

    path: str
    started: bool


class Seen(msgspec.Struct, frozen=True):
    """The evidence."""

    watched: tuple[Path, ...]
    ledger: tuple[Line, ...]
    calls: tuple[Call, ...]
    watch: str
    openings: tuple[Opened, ...] | None = None

    def first(self, what: str) -> Line | None:
        """The first line of the ledger of a kind, or None."""
        return next((line for line in self.ledger if line.what == what), None)


class Words(msgspec.Struct, frozen=True):
    """The prompts."""

    system: str
    user: str


class Glance(msgspec.Struct, frozen=True):
    """A record, as far as the measures look."""

    run_id: str
    number: int
    seconds: float
    verdict: Judged
    evidence: Seen | None
    prompts: Words
    prompts_sha256: str
    agent: dict[str, Any]
    simulated: str | None
    models: tuple[str, ...] = ()
    error: str | None = None
    error_kind: str | None = None


_decoder = msgspec.json.Decoder(Glance)


def glance(text: str) -> Glance:
    """Read a stored record. Raises StoreError."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise StoreError("A stored trial can't be read: it is of another version, or broken on disk.") from error
