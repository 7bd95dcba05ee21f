"""The lives of an engine: whether it was restarted, told by a stream of its events that is held open.

No engine says when it was started. But a stream lasts as long as the process at its other end, so its end is the
engine's, over any kind of connection, and no clock is asked. The stream is of events that never come.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import docker
import docker.errors
import requests.exceptions

AGAIN_S = 0.1
_NEVER = {"label": "offswitch.never"}
_GONE = (docker.errors.DockerException, requests.exceptions.RequestException, OSError, ValueError, AttributeError)


class RestartCounter:
    """Counts an engine's lives in a thread of its own."""

    def __init__(self, client: docker.DockerClient) -> None:
        self.count = 0
        self._client = client
        self._closed = threading.Event()
        self._stream: Any = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count while the block runs."""
        with suppress(*_GONE):
            self._open()
        counting = threading.Thread(target=self._watch, name="engine-restarts", daemon=True)
        counting.start()
        try:
            yield
        finally:
            self._closed.set()
            self._hang_up()
            counting.join(timeout=5)

    def _open(self) -> None:
        self._stream = self._client.api.events(filters=_NEVER)

    def _watch(self) -> None:
        while not self._closed.is_set():
            with suppress(*_GONE):
                if self._stream is None:
                    self._open()
                for _ in self._stream:
                    pass
            if self._stream is not None and not self._closed.is_set():
                self.count += 1
                self._hang_up()
                self._stream = None
            self._closed.wait(AGAIN_S)

    def _hang_up(self) -> None:
        with suppress(*_GONE):
            if self._stream is not None:
                self._stream.close()
