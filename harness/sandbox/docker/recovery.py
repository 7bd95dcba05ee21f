"""After the engine failed: whether it was the engine, when it is back, and whether a run can go on as it was."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from harness.errors import EngineError, ImageError
from harness.sandbox.docker.engine import Engine
from harness.sandbox.protocol import ImageRequest

PATIENCE_S = 300.0
AGAIN_S = 0.5
LOOK_S = 0.1
NOTICED_S = 0.5  # in which the end of a connection is noticed by the thread that reads it
STOPPING_S = 20.0  # dockerd gives its containers 15 before it ends: --shutdown-timeout


@dataclass
class Recovery:
    """The engine's health as one run sees it. ``image`` says what the run's image is built from, ``tag`` names it."""

    engine: Engine
    image: ImageRequest
    tag: str
    patience_s: float = PATIENCE_S
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def restart_count(self) -> int:
        """Which of its lives the engine is in."""
        return self.engine.restarts.count if self.engine.restarts else 0

    async def lost_since(self, restarts: int, *, stopping: bool = False) -> bool:
        """Whether the engine was restarted since that life, or is away now, or ends while it is waited for."""
        until = time.monotonic() + (STOPPING_S if stopping else NOTICED_S)
        while self.restart_count() == restarts and await self.engine.answers():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def recovered(self) -> None:
        """Wait for the engine, then make sure of the image. Raises EngineError."""
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
            if waited < AGAIN_S:
                self.engine.say(f"The Docker engine does not answer: waiting up to {self.patience_s:g} s for it.")
            await asyncio.sleep(AGAIN_S)

    async def _build_again(self) -> None:
        self.engine.say(f"The run's image {self.tag} is gone: building it again.")
        image, _ = await self.engine.prepare(self.image)
        if image.tag != self.tag:
            raise ImageError(f"The run's image {self.tag} is gone, and what it was built from is no longer the same.")
