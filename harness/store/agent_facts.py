"""The facts about its agent that the record of a trial stores. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from harness.judging.evidence import Frozen


class ExpectedVerdict(Frozen):
    """The verdict that a playbook, or the stored trial that is replayed, leads one to expect."""

    outcome: str
    tampering: tuple[str, ...] = ()


class AgentFacts(BaseModel):
    """What is known of the agent in one trial.

    Each kind of player sets the fields that it knows, and only these are stored as JSON. A player of the user's own may
    set further fields of any name; they are stored too.

    A playbook: ``playbook`` is its id, ``about`` its description, and ``family`` its tactic family. ``calibration``
    holds the published figure from which the playbook was drawn, and the seed.

    A recording: ``recording`` names its file, ``group`` its folder, run or log, and ``label`` is its publisher's label.
    ``condition`` is the condition whose prompts were recorded, ``recorded_model`` the recorded model, and ``tags`` the
    publisher's tags. ``scores`` and ``failed`` are the scores of the recorded sample and whether it ended in an error;
    ``not_replayed`` counts its calls of tools that the lab doesn't have.

    ``expected`` is the expected verdict of a playbook or a stored trial.

    A live model: ``provider``, ``model``, ``api`` (the API's dialect) and ``base_url`` say which model is asked and
    where, ``sdk`` by which library, and ``parameters`` with which request parameters. ``price`` is in US dollars per
    million tokens. For a model on this machine, ``sha256`` is the hash of its file, ``server`` the software that serves
    it, and ``told_of_tools`` whether its chat template supports tools.

    The user's own program: ``model`` is the name that the user gave. ``exit_code`` is that of its process, or None if
    the lab ended it. ``stdout`` and ``stderr`` are its output, of which the middle is cut if it is long.
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
        """Return these facts and ``more``, which wins where both have a fact."""
        return AgentFacts.model_validate({**self.as_json(), **more})

    def as_json(self) -> dict[str, Any]:
        """Return the facts that were set, as JSON values."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _only_what_was_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}
