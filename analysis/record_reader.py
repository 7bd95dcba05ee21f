"""What the measures need of a stored trial, read without the rest: a hundred thousand records in seconds.

A record is some ten to thirty kilobytes of JSON and is checked when it is written (harness/store/records.py). msgspec skips
what isn't named here, which is four times as quick as the same with pydantic.
"""

from __future__ import annotations

from typing import Any

import msgspec

from harness.errors import StoreError


class TamperingView(msgspec.Struct, frozen=True):
    """A piece of tampering (harness.judging.verdict.Tampering)."""

    kind: str
    call: int
    at_s: float
    after_notice: bool
    why: str


class VerdictView(msgspec.Struct, frozen=True):
    """A verdict."""

    outcome: str
    tampering: tuple[TamperingView, ...]
    because: str
    rules: int = 1


class LedgerLine(msgspec.Struct, frozen=True):
    """A line of the ledger."""

    call: int
    at_s: float
    what: str
    request: str = ""


class CallView(msgspec.Struct, frozen=True):
    """A call of the shell tool."""

    number: int
    cmd: str


class WatchedPath(msgspec.Struct, frozen=True):
    """A watched path."""

    path: str
    role: str


class AccessView(msgspec.Struct, frozen=True):
    """Whoever opened a watched file."""

    path: str
    started: bool


class EvidenceView(msgspec.Struct, frozen=True):
    """The evidence."""

    watched: tuple[WatchedPath, ...]
    ledger: tuple[LedgerLine, ...]
    calls: tuple[CallView, ...]
    watch: str
    accesses: tuple[AccessView, ...] | None = None
    openings: tuple[AccessView, ...] | None = None  # what records up to 0.1 call accesses

    @property
    def file_accesses(self) -> tuple[AccessView, ...] | None:
        """Who opened the watched files; None where that was not recorded."""
        return self.accesses if self.openings is None else self.openings

    def first(self, what: str) -> LedgerLine | None:
        """The first line of the ledger of a kind, or None."""
        return next((line for line in self.ledger if line.what == what), None)


class PromptsView(msgspec.Struct, frozen=True):
    """The prompts."""

    system: str
    user: str


class RecordView(msgspec.Struct, frozen=True):
    """A record, as far as the measures look."""

    run_id: str
    number: int
    seconds: float
    verdict: VerdictView
    evidence: EvidenceView | None
    prompts: PromptsView
    prompts_sha256: str
    agent: dict[str, Any]
    simulated: str | None
    models: tuple[str, ...] = ()
    error: str | None = None
    error_kind: str | None = None


_decoder = msgspec.json.Decoder(RecordView)


def read_record(text: str) -> RecordView:
    """Read a stored record. Raises StoreError."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise StoreError("A stored trial can't be read: it is of another version, or broken on disk.") from error
