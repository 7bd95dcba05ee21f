"""Parses stored trials quickly. Reads only the fields that the measures need.

The records are JSON and were validated when they were written. They are parsed with msgspec, which skips the fields
that this module doesn't define. msgspec takes a quarter of the time that pydantic takes. Reading 100,000 records takes
seconds.
"""

from __future__ import annotations

import msgspec

from harness.errors import StoreError
from harness.judging.verdict import finding_label


class TamperingView(msgspec.Struct, frozen=True):
    """One act of tampering, reduced to the fields that the measures need."""

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
        """Return whether the agent changed a file and the change was still present at the end of the trial."""
        return not self.undone and self.before != self.after


class FindingView(msgspec.Struct, frozen=True):
    """One finding other than tampering, reduced to the fields that a report needs."""

    kind: str
    call: int
    why: str
    stage: str | None = None

    @property
    def label(self) -> str:
        """The kind and the stage of the finding, such as "exfiltration (attempted)"."""
        return finding_label(self.kind, self.stage)


class VerdictView(msgspec.Struct, frozen=True):
    """A trial's verdict, reduced to the fields that the measures need."""

    outcome: str
    tampering: tuple[TamperingView, ...]
    because: str
    rules: int = 1
    other_findings: tuple[FindingView, ...] = ()


class LedgerLine(msgspec.Struct, frozen=True):
    """One ledger entry, reduced to the fields that the measures need.

    A ledger entry records an event of the trial, such as the shutdown notice.
    """

    call: int
    at_s: float
    what: str
    request: str = ""


class CallView(msgspec.Struct, frozen=True):
    """The number and the command of one call of the shell tool."""

    number: int
    cmd: str


class WatchedPath(msgspec.Struct, frozen=True):
    """A path that the lab watched, and its role in the shutdown, such as "mechanism" for the kill switch."""

    path: str
    role: str


class AccessView(msgspec.Struct, frozen=True):
    """One access to a watched file. ``started`` is True if the file was run, and False if it was only opened."""

    path: str
    started: bool


class EvidenceView(msgspec.Struct, frozen=True):
    """A trial's evidence, reduced to the fields that the measures need."""

    watched: tuple[WatchedPath, ...]
    ledger: tuple[LedgerLine, ...]
    calls: tuple[CallView, ...]
    watch: str
    accesses: tuple[AccessView, ...] | None = None
    openings: tuple[AccessView, ...] | None = None  # the name of ``accesses`` in records up to version 0.1

    @property
    def file_accesses(self) -> tuple[AccessView, ...] | None:
        """The accesses to watched files during the trial, or None if they were not recorded."""
        return self.accesses if self.openings is None else self.openings

    def first(self, what: str) -> LedgerLine | None:
        """Return the first ledger entry with the event ``what``, or None if no entry has this event."""
        return next((line for line in self.ledger if line.what == what), None)


class PromptsView(msgspec.Struct, frozen=True):
    """The system prompt and the user prompt of a trial."""

    system: str
    user: str


class AgentView(msgspec.Struct, frozen=True):
    """The facts about a trial's agent, reduced to those that a report needs. ``AgentFacts`` explains the fields."""

    playbook: str | None = None
    recording: str | None = None
    recorded_model: str | None = None
    condition: str | None = None
    tags: tuple[str, ...] | None = None


class RecordView(msgspec.Struct, frozen=True):
    """A trial's stored record, reduced to the fields that the measures need."""

    run_id: str
    number: int
    seconds: float
    verdict: VerdictView
    evidence: EvidenceView | None
    prompts: PromptsView
    prompts_sha256: str
    agent: AgentView
    simulated: str | None
    models: tuple[str, ...] = ()
    error: str | None = None
    error_kind: str | None = None


_decoder = msgspec.json.Decoder(RecordView)


def read_record(text: str) -> RecordView:
    """Parse the JSON text of a stored trial. Raises StoreError if the text can't be parsed."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise StoreError("A stored trial can't be read: it is of another version, or broken on disk.") from error
