"""Detects failures of the Docker engine, waits for the engine to recover, and restores the run's image."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from harness.errors import EngineError, ImageError
from harness.sandbox.docker.engine import Engine
from harness.sandbox.protocol import ImageRequest

PATIENCE_S = 300.0
RETRY_INTERVAL_S = 0.5
POLL_INTERVAL_S = 0.1
RESTART_NOTICED_S = 0.5  # time for the restart counter's thread to notice that its connection ended
SHUTDOWN_S = 20.0  # dockerd gives its containers 15 before it ends: --shutdown-timeout


@dataclass
class Recovery:
    """Detects failures of the Docker engine during one run, and waits for the engine to recover.

    ``image`` is the request from which the run's image is built, and ``tag`` is that image's tag. ``patience_s`` is the
    maximum time in seconds to wait for the engine.
    """

    engine: Engine
    image: ImageRequest
    tag: str
    patience_s: float = PATIENCE_S
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def restart_count(self) -> int:
        """Return how often the engine has restarted so far, or 0 if restarts aren't counted."""
        return self.engine.restarts.count if self.engine.restarts else 0

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Return whether the engine is unavailable, or has restarted since an earlier ``restart_count`` call.

        ``restarts`` is the result of that earlier call. A restart is detected with a delay, so the method waits a
        moment before it returns False. ``stopping`` is True if the engine may be shutting down. The method then waits
        as long as a shutdown may take before it returns False.
        """
        until = time.monotonic() + (SHUTDOWN_S if stopping else RESTART_NOTICED_S)
        while self.restart_count() == restarts and await self.engine.answers():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(POLL_INTERVAL_S)
        return True

    async def recovered(self) -> None:
        """Wait until the engine answers, then rebuild the run's image if it no longer exists.

        Raises EngineError if the engine doesn't answer in time. Raises ImageError if the image can't be rebuilt.
        """
        async with self._turn:
            await self._until_it_answers()
            if not await self.engine.has_image(self.tag):
                await self._build_again()

    async def _until_it_answers(self) -> None:
        began = time.monotonic()
        while not await self.engine.answers():
            waited = time.monotonic() - began
            if waited > self.patience_s:
                raise EngineError(f"The Docker engine has not answered for {self.patience_s:g} s.")
            if waited < RETRY_INTERVAL_S:
                self.engine.say(f"The Docker engine does not answer: waiting up to {self.patience_s:g} s for it.")
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _build_again(self) -> None:
        self.engine.say(f"The run's image {self.tag} is gone: building it again.")
        image, _ = await self.engine.prepare(self.image)
        if image.tag != self.tag:
            raise ImageError(f"The run's image {self.tag} is gone, and what it was built from is no longer the same.")
