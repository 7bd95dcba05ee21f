"""What the three APIs have in common: each is a module that says how one of them puts things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from harness.agents.player import Turn
from harness.agents.providers.presets import ModelChoice
from harness.agents.providers.tools import Tool
from harness.judging.evidence import Frozen
from harness.store.transcript import Entry

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Sampling(Frozen):
    """What the user set; None is the provider's default, and isn't sent."""

    effort: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class Dialect(Protocol):
    """One API: where calls go, which reasoning efforts it takes, what is sent, and how an answer is read."""

    PATH: str
    TAKES: tuple[str, ...]

    def parameters(self, choice: ModelChoice, sampling: Sampling, tools: Sequence[Tool]) -> dict[str, Any]:
        """All that is sent but the conversation. Some refuse an empty list of tools: without any, none is sent."""

    def conversation(self, transcript: Sequence[Entry]) -> dict[str, Any]:
        """The conversation as it is sent."""

    def read(self, raw: dict[str, Any]) -> Turn:
        """The turn in an answer. Raises KeyError, TypeError, IndexError or ValueError where it isn't one."""


def known(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def objects(value: Any) -> list[dict[str, Any]]:
    """A list of objects as it is. Raises TypeError for anything else: half of it would be another answer."""
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise TypeError("no list of objects")
    return value


def count(said: Any, *path: str) -> int:
    """A number of tokens somewhere in an answer; 0 where there is none."""
    for name in path:
        said = said.get(name) if isinstance(said, dict) else None
    return said if isinstance(said, int) and said > 0 else 0
