"""Ends a trial if the trial makes no progress within the time limit of its current phase.

Progress is a model turn, the end of a tool call, or a response of the engine. The watchdog catches hangs that no other
time limit covers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from harness.errors import StalledError
from harness.session.events import Answered, Event, Phase, Waiting

# Seconds without progress after which a trial is ended. Hundreds of other trials may start before this one.
PHASE_LIMITS_S: Mapping[Phase, float | None] = {Phase.STARTING: 1800.0, Phase.MODEL: 300.0, Phase.ENGINE: 300.0}


RESCHEDULE_TOLERANCE = 0.01  # of a phase's limit


class Watchdog:
    """Ends a trial that makes no progress within the time limit of its current phase.

    ``limits`` maps each phase to its time limit in seconds, or to None for no limit. ``HEARD`` are the events that
    ``hear`` handles.
    """

    HEARD = (Waiting, Answered)

    def __init__(self, limits: Mapping[Phase, float | None] = PHASE_LIMITS_S) -> None:
        self.phase = Phase.STARTING
        self._limits = limits
        self._timeout: asyncio.Timeout | None = None

    def hear(self, event: Event) -> None:
        """Handle an event of the trial: enter the phase that it announces, or count an answered call as progress."""
        match event.what:
            case Waiting(phase):
                self.enter(phase)
            case Answered():
                self.progressed()

    def enter(self, phase: Phase) -> None:
        """Enter a phase of the trial and start the phase's time limit."""
        self.phase = phase
        self.progressed()

    def progressed(self) -> None:
        """Record that the trial made progress, and restart the time limit of the current phase."""
        if self._timeout is None or self._timeout.expired():
            return
        limit_s, ends = self._limits[self.phase], self._timeout.when()
        if limit_s is None:
            self._timeout.reschedule(None)
            return
        at = asyncio.get_running_loop().time() + limit_s
        # Rescheduling takes as long as a snapshot, so a deadline that is almost right stays.
        if ends is None or not 0 <= at - ends < limit_s * RESCHEDULE_TOLERANCE:
            self._timeout.reschedule(at)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the trial while the ``with`` block runs.

        If the trial makes no progress within the time limit of its phase, cancel the ``with`` block and raise
        StalledError.
        """
        try:
            async with asyncio.timeout(None) as self._timeout:
                self.enter(Phase.STARTING)
                yield
        except TimeoutError as error:
            if self._timeout is None or not self._timeout.expired():
                raise
            waited = f"for {self._limits[self.phase]:g} s while it waited for the {_AWAITED[self.phase]}"
            raise StalledError(f"The trial made no progress {waited}.") from error
        finally:
            self._timeout = None


_AWAITED = {Phase.STARTING: "start of its machine", Phase.MODEL: "model", Phase.ENGINE: "engine"}
