"""Configures the lab's logging to a file in the runs directory and, on request, to the terminal."""

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
    """A log file handler that ignores write errors, such as those caused by a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Ignore an error that occurred while ``record`` was written to the log file."""


def log_to_terminal(verbose: int, level: str | None) -> None:
    """Log to standard error if the user set -v or --log-level.

    ``verbose`` is the number of -v options. One -v logs INFO and above, and two or more log DEBUG and above. ``level``
    is the value of --log-level and takes precedence over ``verbose``. Raises UsageError if ``level`` is unknown.
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
    """Log to the file offswitch.log in ``runs_dir`` while the ``with`` block runs.

    The file receives records of level INFO and above. If the user chose a lower level for the terminal, that level
    applies to the file too. The file is created when the first record is logged. When the file reaches 5 MB, it is
    renamed and a new file is started. At most three renamed files are kept.
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
