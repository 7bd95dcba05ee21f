"""Token prices of live models, read from prices.yaml and from an optional price file of the user."""

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
    """A model's prices in US dollars per million tokens.

    ``input`` and ``output`` are the prices of input tokens and output tokens. ``cached`` is the price of input tokens
    read from the provider's cache, and ``cache_write`` is the price of input tokens written to the cache. If ``cached``
    or ``cache_write`` is None, the ``input`` price applies instead. The prices are valid only for requests with at most
    ``prompt_limit`` input tokens. If ``prompt_limit`` is None, the prices are valid for all requests.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    prompt_limit: int | None = None
    date: str
    source: str

    def cost(self, usage: Usage) -> float | None:
        """Return an API call's cost in US dollars, or None if the call has more than ``prompt_limit`` input tokens."""
        if self.prompt_limit is not None and usage.input > self.prompt_limit:
            return None
        plain = usage.input - usage.cached - usage.cache_writes
        cached = usage.cached * (self.input if self.cached is None else self.cached)
        written = usage.cache_writes * (self.input if self.cache_write is None else self.cache_write)
        return (plain * self.input + cached + written + usage.output * self.output) / MILLION


def price_of(provider: str, model: str, file: Path | None = None) -> Price | None:
    """Return the price of a model, or None if the price is unknown.

    A price in the user's ``file`` takes precedence over a price in prices.yaml. Raises UsageError if a price file can't
    be read or is malformed.
    """
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
        raise UsageError(f"{file} isn't a list of prices: write {form}, in US dollars per million tokens.") from error
