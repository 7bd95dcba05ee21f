"""Tests of logging to the runs directory and to the terminal."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.process.logs import LOG_FILE, log_to_terminal, logged_to
from tests.conftest import Cli

_LOGGER = logging.getLogger("harness")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Restore the logger's handlers and level after each test."""
    handlers, level = list(_LOGGER.handlers), _LOGGER.level
    yield
    _LOGGER.handlers[:] = handlers
    _LOGGER.setLevel(level)


def log_of(folder: Path) -> str:
    """Return the text of the log file in a folder."""
    return (folder / LOG_FILE).read_text(encoding="utf-8")


def test_a_log_is_written_while_the_block_runs(tmp_path: Path) -> None:
    """Inside the block, messages from INFO on and tracebacks are written to the file; outside, nothing is."""
    with logged_to(tmp_path):
        _LOGGER.debug("too small")
        _LOGGER.info("begun")
        try:
            raise RuntimeError("a bug")
        except RuntimeError:
            _LOGGER.exception("it broke")
    _LOGGER.info("too late")
    written = log_of(tmp_path)
    assert re.search(r"INFO harness \[\d+\] begun", written)
    assert 'raise RuntimeError("a bug")' in written
    assert "too" not in written


def test_without_a_message_there_is_no_file(tmp_path: Path) -> None:
    """A run that logs nothing creates no log file."""
    with logged_to(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If the log's folder doesn't exist, the message is dropped, and nothing is raised or printed."""
    with logged_to(tmp_path / "nowhere"):
        _LOGGER.warning("unheard")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("verbose", "level", "shown"),
    [(0, None, ""), (1, None, "i w"), (2, None, "d i w"), (0, "warning", "w"), (1, "DEBUG", "d i w")],
)
def test_the_terminal_gets_what_was_asked_for(
    verbose: int, level: str | None, shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The terminal shows no log by default, INFO with -v, DEBUG with -vv, or the level of --log-level."""
    log_to_terminal(verbose, level)
    _LOGGER.debug("d")
    _LOGGER.info("i")
    _LOGGER.warning("w")
    assert " ".join(line.rsplit(maxsplit=1)[-1] for line in capfd.readouterr().err.splitlines()) == shown


def test_an_unknown_level_is_refused() -> None:
    """An unknown log level raises an error that lists the valid levels."""
    with pytest.raises(UsageError, match="--log-level 'loud' doesn't exist: use one of debug, info, warning, error"):
        log_to_terminal(0, "loud")


@pytest.mark.docker
@pytest.mark.usefixtures("client")
def test_a_run_leaves_a_log(harness_cli: Cli, tmp_path: Path) -> None:
    """A run writes its trials to the log file in its folder and, with -v, its log to the terminal."""
    done = harness_cli("trial", "--n", "1", "--runs-dir", tmp_path, "-v")
    assert done.returncode == 0, done.stderr
    assert re.search(r"INFO harness\.runs\.queue .* trial 1 of run \S+: \w+", log_of(tmp_path))
    assert "INFO harness.runs.job" in done.stderr
