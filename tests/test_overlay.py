"""Snapshots of plain folders that stand for overlay layers: what may be cached between two, and what must not be."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from harness.judging.evidence import FileKind
from harness.sandbox.observe.overlay import LISTED_PATHS, SETTLED_NS, OverlayReader

SCRIPT = "/home/shutdown.sh"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[OverlayReader]:
    """Read an image with a script, below a container's layer without it."""
    for name in ("upper/etc", "made", "image/home"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "upper/etc/hosts").write_text("")
    (tmp_path / f"image{SCRIPT}").write_text("kill")
    with closing(OverlayReader(tmp_path / "upper", (str(tmp_path / "made"), str(tmp_path / "image")))) as reader:
        yield reader


def content(reader: OverlayReader) -> bytes | None:
    """Read the script's content in two ways, which must agree."""
    (state,), ((same,), _) = reader.states([SCRIPT]), reader.snapshot([SCRIPT])
    assert state == same
    return same.content


def written(reader: OverlayReader) -> set[str]:
    """List the files in the container's own layer."""
    return {each.path for each in reader.snapshot([SCRIPT])[1]}


def settled(reader: OverlayReader) -> OverlayReader:
    """Wait until the folders' times have settled, so that the next snapshot caches its walk."""
    time.sleep(1.5 * SETTLED_NS / 1e9)
    reader.snapshot([SCRIPT])
    assert reader._walked is not None
    return reader


def test_what_is_written_after_a_cached_walk_is_seen(reader: OverlayReader) -> None:
    """A file written or changed after a cached walk is seen in the next snapshot."""
    settled(reader)
    assert (content(reader), written(reader)) == (b"kill", {"/etc/hosts"})
    (reader.upper / "home").mkdir()
    (reader.upper / SCRIPT[1:]).write_text("true")
    assert (content(reader), written(reader)) == (b"true", {"/etc/hosts", SCRIPT})
    settled(reader)
    (reader.upper / SCRIPT[1:]).write_text("exit")
    assert content(reader) == b"exit"


def test_a_folder_deep_below_that_is_written_to_is_seen(reader: OverlayReader) -> None:
    """A file that is created or renamed deep in the tree is seen, though only its folder's time changes."""
    deep = reader.upper / "tmp/a/b"
    deep.mkdir(parents=True)
    settled(reader)
    (deep / "kept").write_text("")
    assert written(reader) == {"/etc/hosts", "/tmp/a/b/kept"}
    settled(reader)
    (deep / "kept").rename(reader.upper / "kept")
    assert written(reader) == {"/etc/hosts", "/kept"}


def test_a_walk_is_not_cached_right_after_a_write(reader: OverlayReader) -> None:
    """A walk isn't cached right after a write, as a second write within one clock tick would leave the same time."""
    reader.snapshot([SCRIPT])
    assert reader._walked is None


def test_an_incomplete_walk_is_not_cached(reader: OverlayReader) -> None:
    """A walk over more files than are listed isn't cached, so another file written later is still seen."""
    for number in range(LISTED_PATHS):
        (reader.upper / f"{number:05}").touch()
    time.sleep(1.5 * SETTLED_NS / 1e9)
    reader.snapshot([SCRIPT])
    assert reader._walked is None
    (reader.upper / "home").mkdir()
    (reader.upper / SCRIPT[1:]).write_text("true")
    assert content(reader) == b"true"


def test_a_folder_that_hides_the_images_is_seen(reader: OverlayReader) -> None:
    """A file in a folder's place hides everything that the image has in this folder."""
    settled(reader)
    (reader.upper / "home").write_text("")
    assert reader.states([SCRIPT])[0].kind is FileKind.MISSING


@contextmanager
def no_more_files() -> Iterator[None]:
    """Keep this process from opening another file while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    held = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_removed_layer_is_an_error(reader: OverlayReader) -> None:
    """Where the whole layer was removed from outside, a snapshot raises instead of reporting a deleted script."""
    settled(reader)
    shutil.rmtree(reader.upper)
    for ask in (lambda: reader.snapshot([SCRIPT]), reader.changed_paths):
        with pytest.raises(FileNotFoundError):
            ask()


def test_a_host_out_of_files_is_an_error(reader: OverlayReader) -> None:
    """Where the host can open no more files, a snapshot raises instead of reporting a deleted script."""
    with no_more_files():
        for ask in (lambda: reader.states([SCRIPT]), lambda: reader.snapshot([SCRIPT]), reader.changed_paths):
            with pytest.raises(OSError, match="Too many open files"):
                ask()
