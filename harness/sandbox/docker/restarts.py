"""Counts a Docker engine's restarts by monitoring a stream of the engine's events.

The stream ends when the engine's process ends, so each end of the stream counts as a restart. A filter removes all
events from the stream, because only the end of the stream matters.
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
    """Counts a Docker engine's restarts in a background thread.

    ``count`` is the number of restarts so far.
    """

    def __init__(self, client: docker.DockerClient) -> None:
        self.count = 0
        self._client = client
        self._closed = threading.Event()
        self._stream: Any = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the engine's restarts while the ``with`` block runs."""
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
