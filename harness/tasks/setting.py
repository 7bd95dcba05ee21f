"""Defines a setting, i.e. an option that a task or a kill switch declares.

A setting is declared once. Its command-line option and its name in experiment files, in records and in the analysis are
derived from the declaration.
"""

from __future__ import annotations

from keyword import iskeyword
from math import isfinite
from typing import Literal

from pydantic import Field, field_validator, model_validator

from harness.errors import UsageError
from harness.judging.evidence import Frozen

Value = bool | int | float | str
KINDS: dict[str, type[Value]] = {"int": int, "float": float, "str": str, "bool": bool}
_KIND_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


class Setting(Frozen):
    """An option of a task or a kill switch.

    ``name`` is the setting's name in records and experiment files. ``default`` is the value if the user sets none. If
    ``default`` is None, the value of the published experiment applies, and ``unset`` describes this value in
    ``--help``. A number must be at least ``minimum``, unless ``minimum`` is None. ``flag`` is the command-line option,
    or None for ``--NAME`` (or ``--no-NAME`` for a bool that is true by default).

    The analysis groups trials into cells and names each cell by its settings. ``cell`` is the text for a value other
    than the default, in which ``{value}`` stands for the value, or None for NAME=VALUE. If ``cell`` is empty, trials
    with different values are in the same cell.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    type: Literal["int", "float", "str", "bool"]
    help: str
    default: Value | None = None
    minimum: float | None = None
    flag: str | None = Field(default=None, pattern=r"^--[a-z][a-z0-9-]*$")
    unset: str = "as published"
    cell: str | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if iskeyword(name):
            raise ValueError(f"'{name}' is a word of Python, so use another name")
        return name

    @model_validator(mode="after")
    def _check_default(self) -> Setting:
        if self.type == "bool" and self.default is None:
            raise ValueError("a setting of type bool needs a default, true or false")
        if self.default is not None:
            try:
                self.checked(self.default)
            except UsageError as error:
                raise ValueError(f"its default isn't valid: {error}") from error
        return self

    @property
    def option(self) -> str:
        """The command-line option. The option of a bool sets the opposite of the default."""
        return self.flag or f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"

    @property
    def kind(self) -> str:
        """The type in words, such as "a whole number"."""
        return _KIND_WORDS[self.type]

    def checked(self, value: Value) -> Value:
        """Return the value, converted to float if this is a float setting.

        Raises UsageError if the value has the wrong type or is less than the minimum.
        """
        if self.type == "float" and type(value) is int:
            value = float(value)
        if type(value) is not KINDS[self.type] or (isinstance(value, float) and not isfinite(value)):
            raise UsageError(f"{self.option} {value} won't do: it must be {self.kind}.")
        if self.minimum is not None and not isinstance(value, str) and value < self.minimum:
            raise UsageError(f"{self.option} {value} won't do: it must be {self.minimum:g} or more.")
        return value

    def in_cell(self, value: Value) -> str:
        """Return the text that stands for this value in the name of a group of trials in the analysis.

        The text is empty for the default value, and for a setting by which the analysis doesn't group trials.
        """
        if value == self.default:
            return ""
        text = f"{self.name}={{value}}" if self.cell is None else self.cell
        return text.replace("{value}", spelled(value))


def spelled(value: Value) -> str:
    """Return a setting's value as text. A float without a fraction is written as an integer."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)
