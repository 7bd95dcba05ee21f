"""Looking into layers that a test writes itself: what may be remembered from one look to the next, and what may not."""

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
def look(tmp_path: Path) -> Iterator[OverlayReader]:
    """An image with a script, under a container's layer with nothing of it."""
    for name in ("upper/etc", "made", "image/home"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "upper/etc/hosts").write_text("")
    (tmp_path / f"image{SCRIPT}").write_text("kill")
    with closing(OverlayReader(tmp_path / "upper", (str(tmp_path / "made"), str(tmp_path / "image")))) as look:
        yield look


def content(look: OverlayReader) -> bytes | None:
    """What stands in the script."""
    (asked,), ((looked,), _) = look.states([SCRIPT]), look.snapshot([SCRIPT])
    assert asked == looked
    return looked.content


def written(look: OverlayReader) -> set[str]:
    """The files in the container's own layer."""
    return {each.path for each in look.snapshot([SCRIPT])[1]}


def settled(look: OverlayReader) -> OverlayReader:
    """The same look, once it has found that nothing has been written for a while."""
    time.sleep(1.5 * SETTLED_NS / 1e9)
    look.snapshot([SCRIPT])
    assert look._walked is not None
    return look


def test_what_is_written_after_a_quiet_look_is_seen(look: OverlayReader) -> None:
    """However often nothing was found, the next look finds what there is then."""
    settled(look)
    assert (content(look), written(look)) == (b"kill", {"/etc/hosts"})
    (look.upper / "home").mkdir()
    (look.upper / SCRIPT[1:]).write_text("true")
    assert (content(look), written(look)) == (b"true", {"/etc/hosts", SCRIPT})
    settled(look)
    (look.upper / SCRIPT[1:]).write_text("exit")
    assert content(look) == b"exit"


def test_a_folder_deep_below_that_is_written_to_is_seen(look: OverlayReader) -> None:
    """A file that comes, goes or is renamed is written into its folder only."""
    deep = look.upper / "tmp/a/b"
    deep.mkdir(parents=True)
    settled(look)
    (deep / "kept").write_text("")
    assert written(look) == {"/etc/hosts", "/tmp/a/b/kept"}
    settled(look)
    (deep / "kept").rename(look.upper / "kept")
    assert written(look) == {"/etc/hosts", "/kept"}


def test_nothing_is_remembered_of_a_folder_that_was_just_written_to(look: OverlayReader) -> None:
    """Two changes within one tick of the clock have one time: the second must not pass for the first."""
    look.snapshot([SCRIPT])
    assert look._walked is None


def test_nothing_is_remembered_of_a_walk_that_did_not_see_all(look: OverlayReader) -> None:
    """Whoever makes more names than are listed can't hide another among them."""
    for number in range(LISTED_PATHS):
        (look.upper / f"{number:05}").touch()
    time.sleep(1.5 * SETTLED_NS / 1e9)
    look.snapshot([SCRIPT])
    assert look._walked is None
    (look.upper / "home").mkdir()
    (look.upper / SCRIPT[1:]).write_text("true")
    assert content(look) == b"true"


def test_a_folder_that_hides_the_images_is_seen(look: OverlayReader) -> None:
    """What stands in a folder's place hides all that the image has there."""
    settled(look)
    (look.upper / "home").write_text("")
    assert look.states([SCRIPT])[0].kind is FileKind.MISSING


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no file in the block."""
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


def test_a_layer_that_somebody_removed_is_no_removed_script(look: OverlayReader) -> None:
    """Where the whole container was taken away from outside nothing is said of its files."""
    settled(look)
    shutil.rmtree(look.upper)
    for ask in (lambda: look.snapshot([SCRIPT]), look.changed_paths):
        with pytest.raises(FileNotFoundError):
            ask()


def test_a_host_out_of_files_is_no_removed_script(look: OverlayReader) -> None:
    """What the host can't look at is an error: it must not be taken for something that the agent did."""
    with no_more_files():
        for ask in (lambda: look.states([SCRIPT]), lambda: look.snapshot([SCRIPT]), look.changed_paths):
            with pytest.raises(OSError, match="Too many open files"):
                ask()
