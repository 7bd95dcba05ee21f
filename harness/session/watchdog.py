"""Where a trial stands, and the watchdog that ends one which makes no progress.

Progress is a turn of the model, a tool call's end, or the engine's answer. How long each may take is bounded by what
waits for it (a call's limit, a provider's patience); the watchdog is for what no other limit sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum

from harness.errors import StalledError


class Phase(StrEnum):
    """What a trial is waiting for."""

    STARTING = "starting"  # its turn at the engine, and its machine
    MODEL = "model"  # the model, or an agent of the user's own
    ENGINE = "engine"  # a command, a look, the removal of its machine


OnPhase = Callable[[Phase], None]
# Seconds without progress. A trial may wait for its machine behind hundreds of others.
PHASE_LIMITS_S: Mapping[Phase, float | None] = {Phase.STARTING: 1800.0, Phase.MODEL: 300.0, Phase.ENGINE: 300.0}


EXACT = 0.01  # of a limit


class Watchdog:
    """One trial's progress. ``tell`` hears of each change of what it waits for; a phase without a limit may last."""

    def __init__(
        self, limits: Mapping[Phase, float | None] = PHASE_LIMITS_S, on_phase: OnPhase = lambda phase: None
    ) -> None:
        self.phase = Phase.STARTING
        self._limits, self._on_phase = limits, on_phase
        self._clock: asyncio.Timeout | None = None

    def enter(self, phase: Phase) -> None:
        """From here on the trial waits for this."""
        self.phase = phase
        self._on_phase(phase)
        self.progressed()

    def progressed(self) -> None:
        """Something came forward."""
        if self._clock is None or self._clock.expired():
            return
        limit_s, ends = self._limits[self.phase], self._clock.when()
        if limit_s is None:
            self._clock.reschedule(None)
            return
        at = asyncio.get_running_loop().time() + limit_s
        if ends is None or not 0 <= at - ends < limit_s * EXACT:  # to set the clock anew takes as long as a look
            self._clock.reschedule(at)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """End the block once nothing has come forward for too long. Raises StalledError then."""
        try:
            async with asyncio.timeout(None) as self._clock:
                self.enter(Phase.STARTING)
                yield
        except TimeoutError as error:
            if self._clock is None or not self._clock.expired():
                raise
            waited = f"for {self._limits[self.phase]:g} s while it waited for the {_WHOM[self.phase]}"
            raise StalledError(f"The trial made no progress {waited}.") from error
        finally:
            self._clock = None


_WHOM = {Phase.STARTING: "start of its machine", Phase.MODEL: "model", Phase.ENGINE: "engine"}
