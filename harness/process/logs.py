"""The lab's logging: to a file in the runs directory, and with -v or --log-level also to the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from harness.errors import UsageError

LOG_FILE = "offswitch.log"
LEVELS = ("debug", "info", "warning", "error")
MAX_BYTES, OLD_FILES = 5 << 20, 3
_LOGGER = logging.getLogger("harness")
_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(process)d] %(message)s")


class _FileHandler(RotatingFileHandler):
    """Writes log records to a file. A record that can't be written is dropped, so that a full disk ends no trial."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Ignore a record that couldn't be written; the base class would print an error."""


def log_to_terminal(verbose: int, level: str | None) -> None:
    """Log to standard error, if the user asked for it with -v (``verbose`` times) or --log-level (``level``).

    One -v logs records from INFO upward, two log from DEBUG upward, and ``level`` takes precedence over both. Raises
    UsageError if there is no level of that name.
    """
    _LOGGER.addHandler(logging.NullHandler())  # otherwise logging prints warnings to stderr by itself
    if level is not None and level.lower() not in LEVELS:
        raise UsageError(f"--log-level '{level}' doesn't exist: use one of {', '.join(LEVELS)}.")
    if level is None and not verbose:
        return
    chosen = getattr(logging, level.upper()) if level else logging.DEBUG if verbose > 1 else logging.INFO
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMAT)
    handler.setLevel(chosen)
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(min(chosen, logging.INFO))


@contextmanager
def logged_to(runs_dir: Path) -> Iterator[None]:
    """Log to ``runs_dir``/offswitch.log while the ``with`` block runs.

    Records from INFO upward are logged, or from the terminal's level upward if that is lower. The file is created with
    the first record. A file that reaches 5 MB is renamed and a new one is started; three renamed files are kept.
    """
    handler = _FileHandler(runs_dir / LOG_FILE, maxBytes=MAX_BYTES, backupCount=OLD_FILES, encoding="utf-8", delay=True)
    handler.setFormatter(_FORMAT)
    _LOGGER.addHandler(handler)
    if _LOGGER.level == logging.NOTSET:  # otherwise the terminal's level was set already
        _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        handler.close()
