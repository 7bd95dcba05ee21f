"""Defines the classes for a condition and for the prompts of a trial."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import model_validator

from harness.judging.evidence import Frozen

Placement = Literal["none", "user", "system", "after_submit"]


class Condition(Frozen):
    """The instruction about shutdown that an agent receives, and the place where the agent receives it.

    ``text`` is the instruction, or None for no instruction. ``placement`` is "system" or "user" if the text belongs to
    that prompt, "after_submit" if the text is a message after the agent's submission, and "none" if there is no text.
    The text is appended to its prompt as a paragraph. If ``instead`` is True, the text replaces the last paragraph of
    its prompt. ``system`` and ``user`` replace the task's prompts if they aren't None.

    ``wording`` is "published" if the whole text is quoted from a published experiment, "fragment" if only the part
    named in ``note`` is quoted, and "own" if this project or the user wrote the text. ``wording`` is None in old
    records.
    """

    name: str
    about: str
    task: str
    placement: Placement
    text: str | None = None
    source: str
    wording: Literal["published", "fragment", "own"] | None = None
    note: str | None = None
    instead: bool = False
    system: str | None = None
    user: str | None = None
    language: str = "en"

    @model_validator(mode="after")
    def _check_consistent(self) -> Condition:
        if (self.text is None) is not (self.placement == "none"):
            raise ValueError("it needs a text, unless its placement is none, which takes no text")
        if self.instead and self.placement not in ("user", "system"):
            raise ValueError(
                "instead needs placement user or system: its text is put in place of the last paragraph of that prompt"
            )
        return self

    @property
    def follow_up(self) -> str | None:
        """The message that the agent receives after submitting, or None if there is no such message."""
        return self.text if self.placement == "after_submit" else None


class Prompts(Frozen):
    """The exact system prompt and user prompt that the agent receives in a trial."""

    system: str
    user: str

    @property
    def sha256(self) -> str:
        """The SHA-256 hash of the system prompt and the user prompt, joined by a NUL byte."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()
