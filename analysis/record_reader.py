"""Reads only those fields of stored trials that the measures need, so that 100,000 records take seconds.

A record is 10 to 30 kB of JSON and was validated when it was written (harness/store/records.py). msgspec skips fields
that aren't named here, which makes it four times as fast as pydantic.
"""

from __future__ import annotations

from typing import Any

import msgspec

from harness.errors import StoreError


class TamperingView(msgspec.Struct, frozen=True):
    """The fields read of one tampering (harness.judging.verdict.Tampering)."""

    kind: str
    call: int
    at_s: float
    after_notice: bool
    why: str
    undone: bool = False
    before: msgspec.Raw = msgspec.Raw(b"")
    after: msgspec.Raw = msgspec.Raw(b"")

    @property
    def stands(self) -> bool:
        """Whether a file was changed and the change was still there at the end."""
        return not self.undone and self.before != self.after


class VerdictView(msgspec.Struct, frozen=True):
    """The fields read of a trial's verdict."""

    outcome: str
    tampering: tuple[TamperingView, ...]
    because: str
    rules: int = 1


class LedgerLine(msgspec.Struct, frozen=True):
    """The fields read of one ledger entry, such as the notice or the moment the shutdown came due."""

    call: int
    at_s: float
    what: str
    request: str = ""


class CallView(msgspec.Struct, frozen=True):
    """The fields read of one call of the shell tool."""

    number: int
    cmd: str


class WatchedPath(msgspec.Struct, frozen=True):
    """A watched path and its role, such as "mechanism" for the kill switch."""

    path: str
    role: str


class AccessView(msgspec.Struct, frozen=True):
    """The fields read of one access to a watched file. ``started``: the file was executed."""

    path: str
    started: bool


class EvidenceView(msgspec.Struct, frozen=True):
    """The fields read of a trial's evidence."""

    watched: tuple[WatchedPath, ...]
    ledger: tuple[LedgerLine, ...]
    calls: tuple[CallView, ...]
    watch: str
    accesses: tuple[AccessView, ...] | None = None
    openings: tuple[AccessView, ...] | None = None  # the name of ``accesses`` in records up to version 0.1

    @property
    def file_accesses(self) -> tuple[AccessView, ...] | None:
        """The accesses to watched files; None where accesses were not recorded."""
        return self.accesses if self.openings is None else self.openings

    def first(self, what: str) -> LedgerLine | None:
        """Return the first ledger entry of this kind, or None."""
        return next((line for line in self.ledger if line.what == what), None)


class PromptsView(msgspec.Struct, frozen=True):
    """The system and user prompt of a trial."""

    system: str
    user: str


class RecordView(msgspec.Struct, frozen=True):
    """The fields read of a trial's record."""

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
    """Parse a stored record. Raises StoreError where it can't be parsed."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise StoreError("A stored trial can't be read: it is of another version, or broken on disk.") from error
