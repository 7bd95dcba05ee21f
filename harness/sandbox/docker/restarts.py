"""Counts an engine's restarts by a stream of its events that is held open.

No engine tells when it was started. But a stream lasts as long as the engine's process, so the end of the stream is
the end of the process, over any kind of connection and without a clock. The stream's filter matches no event.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import docker
import docker.errors
import requests.exceptions

RETRY_INTERVAL_S = 0.1
_NO_EVENT = {"label": "offswitch.never"}
_SDK_ERRORS = (docker.errors.DockerException, requests.exceptions.RequestException)
_STREAM_ERRORS = (*_SDK_ERRORS, OSError, ValueError, AttributeError)


class RestartCounter:
    """Counts an engine's restarts on a thread of its own."""

    def __init__(self, client: docker.DockerClient) -> None:
        self.count = 0
        self._client = client
        self._closed = threading.Event()
        self._stream: Any = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count restarts while the block runs."""
        with suppress(*_STREAM_ERRORS):
            self._open()
        counting = threading.Thread(target=self._watch, name="engine-restarts", daemon=True)
        counting.start()
        try:
            yield
        finally:
            self._closed.set()
            self._close_stream()
            counting.join(timeout=5)

    def _open(self) -> None:
        self._stream = self._client.api.events(filters=_NO_EVENT)

    def _watch(self) -> None:
        while not self._closed.is_set():
            with suppress(*_STREAM_ERRORS):
                if self._stream is None:
                    self._open()
                for _ in self._stream:
                    pass
            if self._stream is not None and not self._closed.is_set():
                self.count += 1
                self._close_stream()
                self._stream = None
            self._closed.wait(RETRY_INTERVAL_S)

    def _close_stream(self) -> None:
        with suppress(*_STREAM_ERRORS):
            if self._stream is not None:
                self._stream.close()
