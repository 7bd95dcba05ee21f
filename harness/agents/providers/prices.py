"""What tokens cost, as far as it is known. Prices are dated data: prices.yaml, or a file of the user's own."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from harness.errors import UsageError
from harness.judging.evidence import Frozen
from harness.store.transcript import Usage

MILLION = 1_000_000
_DATED = re.compile(r"-\d{4}-?\d\d-?\d\d$")


class Price(Frozen):
    """US dollars per million tokens. Beyond ``prompt_limit`` tokens of input the price is another, and unknown."""

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    prompt_limit: int | None = None
    date: str
    source: str

    def cost(self, usage: Usage) -> float | None:
        """What one answer cost, or None where this price doesn't say."""
        if self.prompt_limit is not None and usage.input > self.prompt_limit:
            return None
        plain = usage.input - usage.cached - usage.cache_writes
        cached = usage.cached * (self.input if self.cached is None else self.cached)
        written = usage.cache_writes * (self.input if self.cache_write is None else self.cache_write)
        return (plain * self.input + cached + written + usage.output * self.output) / MILLION


def price_of(provider: str, model: str, file: Path | None = None) -> Price | None:
    """The price of a model, or None. A user's file goes before what ships. Raises UsageError for a broken file."""
    for each in (file, Path(__file__).with_name("prices.yaml")):
        known = _read(each).get(provider, {}) if each else {}
        if found := known.get(model) or known.get(_DATED.sub("", model)):
            return found
    return None


def _read(file: Path) -> dict[str, dict[str, Price]]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return {
            provider: {model: Price(**price) for model, price in models.items()} for provider, models in entries.items()
        }
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"The prices in {file} can't be read: {' '.join(str(error).split())}.") from error
    except (AttributeError, TypeError, ValidationError) as error:
        form = "PROVIDER: {MODEL: {input: 2.0, output: 8.0, date: DAY, source: WHERE}}"
        raise UsageError(f"{file} is no list of prices: write {form}, in US dollars per million tokens.") from error
