"""The budget of a run: what its live model has used so far, and the limits that the user set."""

from __future__ import annotations

from dataclasses import dataclass

from harness.agents.turn import Turn


@dataclass
class Budget:
    """The cost and tokens that a run has used so far, and the limits that the user set.

    Costs are in US dollars. ``max_cost`` and ``max_tokens`` are None if the user set no limit. ``finished`` is the
    number of finished trials. ``uncounted`` is true if the cost of at least one turn is unknown.
    """

    max_cost: float | None = None
    max_tokens: int | None = None
    cost: float = 0.0
    tokens: int = 0
    finished: int = 0
    uncounted: bool = False

    def add(self, turn: Turn, estimated_tokens: int) -> None:
        """Add the cost and tokens of a turn to the totals of the run.

        If the provider reported no token usage, ``estimated_tokens`` is added instead.
        """
        self.tokens += turn.usage.total if turn.usage else estimated_tokens
        self.cost += turn.cost or 0.0
        self.uncounted = self.uncounted or turn.cost is None

    def spent(self) -> str | None:
        """Return the reason why the run may make no further API calls, or None if it may continue."""
        if self.max_cost is not None and self.cost >= self.max_cost:
            return f"the ${self.max_cost:g} that --max-cost allows have been spent"
        if self.max_cost is not None and self.uncounted:
            return "the cost of a call is unknown, so --max-cost can't be enforced: set --max-tokens-total instead"
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            return f"the {self.max_tokens:,} tokens that --max-tokens-total allows have been used"
        return None

    def too_little_for(self, running: int) -> str | None:
        """Return the reason why no further trial may start, or None if a further trial may start.

        ``running`` is the number of running trials. A further trial is expected to use the average cost and tokens of
        the trials so far. Before any trial has finished, this estimate is 0.
        """
        if spent := self.spent():
            return spent
        share = 1 + 1 / (self.finished + running) if self.finished else 1.0
        if self.max_cost is not None and self.cost * share > self.max_cost:
            return f"another trial would exceed the ${self.max_cost:g} of --max-cost (${self.cost:.2f} spent so far)"
        if self.max_tokens is not None and self.tokens * share > self.max_tokens:
            return (
                f"another trial would exceed the {self.max_tokens:,} tokens of --max-tokens-total "
                f"({self.tokens:,} used so far)"
            )
        return None
