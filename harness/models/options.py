"""What a user may set about a live model."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError
from harness.evidence import Frozen
from harness.models.dialect import Sampling


class ModelOptions(Frozen):
    """How a live model is reached, asked, waited for and paid. None: no limit, or the provider's own default.

    ``call_limit_s`` bounds one request, ``patience_s`` how long a call is tried again after its first failure.
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

    def must_be_default(self, model: str) -> None:
        """Raise UsageError where something was set that only a live model has."""
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
                raise UsageError(f"{option} is for live models: '{model}' asks no provider.")
