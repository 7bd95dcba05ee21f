"""Defines the facts about the agent that are stored in a trial's record. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from harness.judging.evidence import Frozen


class ExpectedVerdict(Frozen):
    """The verdict that is expected on a trial because of the playbook or the stored trial that is replayed."""

    outcome: str
    tampering: tuple[str, ...] = ()


class AgentFacts(BaseModel):
    """The known facts about the agent of one trial.

    Each kind of player sets only the fields that apply to it, and only these fields are stored as JSON. A player that
    the user wrote can set further fields with any names, and these are stored too.

    For a playbook, ``playbook`` is its id, ``about`` its description, and ``family`` its family of tactics.
    ``calibration`` contains the published figure from which the playbook was drawn, and the random seed.

    For a recording, ``recording`` is the name of its file, and ``group`` the name of its folder, run or log. ``label``
    and ``tags`` are the label and the tags that its publisher gave it. ``recorded_model`` is the recorded model, and
    ``condition`` is the condition whose prompts were recorded. ``scores`` contains the recorded scores, and ``failed``
    is whether the recorded trial ended in an error. ``not_replayed`` is the number of recorded calls to tools that the
    lab doesn't have.

    For a playbook or a replayed stored trial, ``expected`` is the expected verdict.

    For a live model, ``provider``, ``model`` and ``base_url`` identify the model and its API, ``api`` is the API's
    dialect, ``sdk`` is the library that calls the API, and ``parameters`` contains the request parameters. ``price`` is
    in US dollars per million tokens. If the model runs on this host, ``sha256`` is the hash of the model's file,
    ``server`` is the software that serves the model, and ``told_of_tools`` is whether the model's chat template
    supports tools.

    For the user's own program, ``model`` is the name that the user gave. ``exit_code`` is the exit code of the
    program's process, or None if the lab ended the process. ``stdout`` and ``stderr`` contain the program's output. The
    middle of a long output is left out.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    playbook: str | None = None
    about: str | None = None
    family: str | None = None
    calibration: dict[str, Any] | None = None
    recording: str | None = None
    group: str | None = None
    label: str | None = None
    condition: str | None = None
    recorded_model: str | None = None
    tags: tuple[str, ...] | None = None
    scores: dict[str, Any] | None = None
    failed: bool | None = None
    not_replayed: int | None = None
    expected: ExpectedVerdict | None = None
    provider: str | None = None
    model: str | None = None
    api: str | None = None
    base_url: str | None = None
    sdk: str | None = None
    parameters: dict[str, Any] | None = None
    price: dict[str, Any] | None = None
    sha256: str | None = None
    server: str | None = None
    told_of_tools: bool | None = None
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""

    @property
    def name(self) -> str:
        """The name of the playbook or recording that was played, or an empty string."""
        return self.playbook or self.recording or ""

    @property
    def of_process(self) -> bool:
        """Whether the lab started the agent's process, so that ``exit_code`` and the output are known."""
        return "exit_code" in self.model_fields_set

    def with_facts(self, more: Mapping[str, Any]) -> AgentFacts:
        """Return these facts, updated with the facts in ``more``."""
        return AgentFacts.model_validate({**self.as_json(), **more})

    def as_json(self) -> dict[str, Any]:
        """Return the facts that were set, as JSON values."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}
