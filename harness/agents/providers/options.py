"""The command-line options that apply only to live models."""

from __future__ import annotations

import math
from pathlib import Path

from harness.agents.providers.apis.dialect import Sampling
from harness.errors import UsageError
from harness.judging.evidence import Frozen


class ModelOptions(Frozen):
    """The user's options for a live model, such as the API address, time limits and the budget.

    An option that is None wasn't set by the user. ``call_limit_s`` is the time limit for one request in seconds. A
    failed call is retried for at most ``patience_s`` seconds after its first failure. If ``preflight`` is true, the API
    key and the model's name are checked before the run starts.
    """

    base_url: str | None = None
    api: str | None = None
    sampling: Sampling = Sampling()
    call_limit_s: float = 600.0
    patience_s: float = 3600.0
    prices: Path | None = None
    max_cost: float | None = None
    max_tokens_total: int | None = None
    preflight: bool = True

    def must_make_sense(self) -> None:
        """Raise UsageError if a numeric option is NaN, infinite or out of range."""
        sampling = self.sampling
        above_0 = {
            "--max-cost": self.max_cost,
            "--max-tokens-total": self.max_tokens_total,
            "--max-tokens": sampling.max_tokens,
            "--call-limit": self.call_limit_s,
        }
        for option, value in above_0.items():
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{option} {value:g} won't do: it must be above 0.")
        for option, value in (("--temperature", sampling.temperature), ("--patience", self.patience_s / 60)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{option} {value:g} won't do: it must be 0 or more.")

    def must_be_default(self, model: str) -> None:
        """Raise UsageError if the user set an option that only live models support.

        ``model`` is the name of the chosen model, which isn't live. The name appears in the error message.
        """
        given = {
            "--base-url": self.base_url,
            "--api": self.api,
            "--reasoning-effort": self.sampling.effort,
            "--temperature": self.sampling.temperature,
            "--max-tokens": self.sampling.max_tokens,
            "--max-cost": self.max_cost,
            "--max-tokens-total": self.max_tokens_total,
            "--prices": self.prices,
        }
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} is for live models: '{model}' calls no provider.")
