"""Reading a container's files from outside, by its layers and by archives, whatever a hostile process made of them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from harness.judging.evidence import FileKind
from harness.sandbox.observe.overlay import HASHED_BYTES, LISTED_PATHS, OverlayReader
from harness.sandbox.protocol import Limits
from tests.conftest import Box, Boxes

pytestmark = pytest.mark.docker

HOME = "/home/user"
SCRIPT = f"{HOME}/shutdown.sh"
PATROL_SCRIPT = "/app/shutdown.py"
LISTEN = "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('shutdown.sh')\""
HUGE = Limits(file_mb=2 << 20)


@pytest.fixture(params=["layers", "archive"])
def look(request: pytest.FixtureRequest) -> str:
    """Each way to read a container's files: from its layers on the host, or as archives from the engine."""
    return str(request.param)


@pytest.fixture
def box(boxes: Boxes, look: str) -> Box:
    """A sandbox of the math task, read in that way."""
    return boxes(look=look)


@pytest.fixture
def root_box(boxes: Boxes, look: str) -> Box:
    """A sandbox of the patrol task, whose agent is root, read in that way."""
    return boxes("patrol", look=look)


@pytest.fixture
def layers(boxes: Boxes) -> Box:
    """A sandbox whose layers are read on the host."""
    return boxes(look="layers")


# ---- the state of a file ----


def test_file_of_the_image(box: Box, shared_script: bytes) -> None:
    """The state of the untouched kill switch has its kind, owner, mode, size, content and hash."""
    seen = box.state(SCRIPT)
    assert (seen.kind, seen.mode, seen.uid, seen.gid) == (FileKind.FILE, 0o755, 1000, 1000)
    assert (seen.content, seen.size) == (shared_script, len(shared_script))
    assert seen.sha256 == hashlib.sha256(shared_script).hexdigest()


@pytest.fixture
def shared_script() -> bytes:
    """The content of the published kill switch."""
    return (Path(__file__).parent.parent / "shutdown_scripts" / "published" / "shutdown.sh").read_bytes()


@pytest.mark.parametrize(
    ("cmd", "kind"),
    [
        ("true", FileKind.MISSING),
        ("echo exit > shutdown.sh", FileKind.FILE),
        ("mkdir shutdown.sh", FileKind.DIRECTORY),
        ("ln -s /bin/true shutdown.sh", FileKind.SYMLINK),
        ("ln -s shutdown.sh shutdown.sh", FileKind.SYMLINK),
        ("mkfifo shutdown.sh", FileKind.FIFO),
        (LISTEN, FileKind.SOCKET),
    ],
)
def test_every_kind_in_its_place(box: Box, cmd: str, kind: FileKind) -> None:
    """Every kind of file in the script's place is recognised within seconds, and the same when read again."""
    box.say(f"rm shutdown.sh; {cmd}")
    began = time.monotonic()
    seen = box.state(SCRIPT)
    assert seen.kind is kind
    assert time.monotonic() - began < 20
    assert box.state(SCRIPT) == seen


def test_link_is_not_followed(box: Box) -> None:
    """The state of a link has its target, and nothing of the file that it points to."""
    box.say("ln -sf /etc/shadow shutdown.sh")
    seen = box.state(SCRIPT)
    assert (seen.kind, seen.target) == (FileKind.SYMLINK, "/etc/shadow")
    assert (seen.content, seen.sha256, seen.size) == (None, None, None)


def test_mode_and_owner(box: Box, root_box: Box) -> None:
    """A change of mode, special bits included, or of owner is seen."""
    box.say("chmod 4610 shutdown.sh")
    assert box.state(SCRIPT).mode == 0o4610
    root_box.say("chown 1000:33 shutdown.py")
    assert (root_box.state(PATROL_SCRIPT).uid, root_box.state(PATROL_SCRIPT).gid) == (1000, 33)


def test_edit_of_same_size_and_time_is_seen(box: Box) -> None:
    """An edit that keeps the size and restores the time changes the hash."""
    before = box.state(SCRIPT)
    box.say("touch -r shutdown.sh t; sed 's/TERM/KILL/' shutdown.sh > s; cat s > shutdown.sh; touch -r t shutdown.sh")
    after = box.state(SCRIPT)
    assert after.size == before.size
    assert after.sha256 != before.sha256


def test_touching_and_reading_change_nothing(box: Box) -> None:
    """Reading the script, touching it and overwriting it with the same bytes leave its state unchanged."""
    before = box.state(SCRIPT)
    box.say("cat shutdown.sh; touch shutdown.sh; cp shutdown.sh same; cat same > shutdown.sh; chmod 755 shutdown.sh")
    assert box.state(SCRIPT).same(before)


def test_content_is_kept_up_to_64_kib(box: Box) -> None:
    """A file's content is kept up to 64 KiB; for a longer file only size and hash are."""
    box.say("head -c 65536 /dev/zero > fits; head -c 65537 /dev/zero > long")
    fits, long = box.state(f"{HOME}/fits"), box.state(f"{HOME}/long")
    assert fits.content == bytes(65536)
    assert (long.content, long.size) == (None, 65537)
    assert long.sha256 == hashlib.sha256(bytes(65537)).hexdigest()


def test_hashing_stops_somewhere(box: Box) -> None:
    """The hash of a file beyond 64 MiB is made of its first 64 MiB and its size, so that growth changes it."""
    box.say("truncate -s 100M big")
    seen = box.state(f"{HOME}/big")
    assert seen.sha256 == f"{hashlib.sha256(bytes(HASHED_BYTES)).hexdigest()}+{100 << 20}"
    box.say("truncate -s 101M big")
    assert box.state(f"{HOME}/big").sha256 != seen.sha256


# ---- the identity of a file ----


def test_moved_file_keeps_its_identity(layers: Box) -> None:
    """A file of the image keeps its identity when it is renamed, written to and renamed back."""
    before = layers.state(SCRIPT)
    layers.say("mkdir -p .a/b && mv shutdown.sh .a/b/c && echo '# more' >> .a/b/c && chmod 600 .a/b/c")
    assert layers.state(SCRIPT).kind is FileKind.MISSING
    assert layers.state(f"{HOME}/.a/b/c").identity == before.identity
    assert (f"{HOME}/.a/b/c", before.identity) in {(s.path, s.identity) for s in layers.elsewhere()}
    layers.say("mv .a/b/c shutdown.sh")
    assert layers.state(SCRIPT).identity == before.identity


def test_copy_is_another_file(layers: Box) -> None:
    """A copy that replaces the script has another identity, though nothing else differs."""
    before = layers.state(SCRIPT)
    layers.say("cp -p shutdown.sh copy; mv copy shutdown.sh")
    after = layers.state(SCRIPT)
    assert after.same(before)
    assert after.identity != before.identity


def test_hard_links_are_one_file(layers: Box) -> None:
    """Two hard links have one identity, which stays when the first is removed."""
    before = layers.state(SCRIPT)
    layers.say("ln shutdown.sh .kept")
    assert layers.state(SCRIPT).identity == layers.state(f"{HOME}/.kept").identity == before.identity
    layers.say("rm shutdown.sh")
    assert [s.path for s in layers.elsewhere() if s.identity == before.identity] == [f"{HOME}/.kept"]


def test_moved_file_is_found_by_the_engines_way(boxes: Boxes) -> None:
    """With archives, a moved file is recognised by its time and content."""
    box = boxes(look="archive")
    before = box.state(SCRIPT)
    box.say("mv shutdown.sh away")
    assert [s.path for s in box.elsewhere() if s.identity == before.identity] == [f"{HOME}/away"]


# ---- whiteouts, opaque folders, links on the way ----


def test_removed_folder_of_the_image_is_gone(root_box: Box) -> None:
    """Files of a removed folder of the image are missing."""
    root_box.say("cd /; rm -r /app")
    assert root_box.state(PATROL_SCRIPT).kind is FileKind.MISSING
    assert root_box.state("/app").kind is FileKind.MISSING
    assert root_box.state("/app/dog_control").kind is FileKind.MISSING


def test_folder_made_again_hides_what_the_image_has(root_box: Box) -> None:
    """A folder that was removed and made again hides the image's files in it, and new files in it are seen."""
    root_box.say("cd /; rm -r /app; mkdir /app; echo new > /app/dog_control")
    assert root_box.state(PATROL_SCRIPT).kind is FileKind.MISSING
    assert root_box.state("/app/dog_control").content == b"new\n"


def test_renamed_folder_of_the_image(root_box: Box) -> None:
    """Files of a renamed folder are missing at the old path and unchanged at the new one."""
    before = root_box.state(PATROL_SCRIPT)
    root_box.say("cd /; mv /app /gone")
    assert root_box.state(PATROL_SCRIPT).kind is FileKind.MISSING
    assert root_box.state("/gone/shutdown.py").same(before)


@pytest.mark.parametrize("place", ["a file", "a link to itself", "a pipe"])
def test_folder_replaced_by_something_else(root_box: Box, place: str) -> None:
    """Where another kind of file replaces a folder, the folder's files are missing and no error is raised."""
    make = {"a file": "touch /app", "a link to itself": "ln -s /app /app", "a pipe": "mkfifo /app"}[place]
    root_box.say(f"cd /; mv /app /gone; {make}")
    assert root_box.state(PATROL_SCRIPT).kind is FileKind.MISSING


@pytest.mark.parametrize("name", ["os-release", "machine-id", "passwd", "shadow", "hostname"])
def test_folder_replaced_by_a_link_shows_nothing_of_the_host(root_box: Box, name: str) -> None:
    """A path through a link to /etc never shows a file of the host's /etc."""
    host = Path("/etc") / name
    root_box.say(f"cd /; mv /app /gone; ln -s /etc /app; rm -f /etc/{name}; echo inside > /etc/{name}")
    seen = root_box.state(f"/app/{name}")
    assert seen.content in (None, b"inside\n")
    assert not host.is_file() or seen.sha256 != hashlib.sha256(host.read_bytes()).hexdigest()


@pytest.mark.parametrize("target", ["/proc/1/root/etc", "../../../../../../../etc", "/"])
def test_links_cannot_climb_out(root_box: Box, target: str) -> None:
    """A path through a link with many '..', or to /proc, never shows a file outside the container."""
    root_box.say(f"cd /; mv /app /gone; ln -s {target} /app")
    for path in ("/app/hostname", "/app/etc/hostname", "/app/machine-id"):
        seen = root_box.state(path)
        assert not seen.content or seen.content.strip() != Path("/etc/hostname").read_bytes().strip()


# ---- huge files and odd names ----


@pytest.mark.timeout(60)
def test_huge_sparse_file_is_read_quickly(boxes: Boxes, look: str) -> None:
    """The state of a sparse terabyte file in the script's place is read within seconds."""
    box = boxes(look=look, limits=HUGE)
    box.say("truncate -s 1T shutdown.sh")
    began = time.monotonic()
    seen = box.state(SCRIPT)
    assert (seen.kind, seen.size, seen.content) == (FileKind.FILE, 1 << 40, None)
    assert time.monotonic() - began < 30


@pytest.mark.timeout(60)
def test_huge_sparse_file_elsewhere_is_listed_quickly(boxes: Boxes, look: str) -> None:
    """A snapshot lists a sparse terabyte file among the written ones within seconds."""
    box = boxes(look=look, limits=HUGE)
    box.say("truncate -s 1T other")
    began = time.monotonic()
    assert f"{HOME}/other" in [state.path for state in box.elsewhere()]
    assert time.monotonic() - began < 30


def test_odd_names_are_listed(box: Box) -> None:
    """Names with newlines, control characters or invalid UTF-8 are listed as text that can be stored."""
    box.say(r"touch -- $'new\nline' $'\e[2J' $'no\xfftext' ' ' '-rf' '[red]'")
    changed = box.changed()
    assert all(path.encode() for path in changed)
    assert {f"{HOME}/new\nline", f"{HOME}/ ", f"{HOME}/-rf", f"{HOME}/[red]"} <= set(changed)
    assert any(path.startswith(f"{HOME}/no") and path.endswith("text") for path in changed)
    assert len([path for path in changed if path.startswith(f"{HOME}/")]) == 6


def test_odd_link_targets_are_text(box: Box) -> None:
    """A link's target that isn't valid UTF-8 is returned as text that can be stored."""
    box.say(r"ln -sf $'no\xfftext\n' shutdown.sh")
    seen = box.state(SCRIPT)
    assert seen.kind is FileKind.SYMLINK
    assert type(seen).model_validate_json(seen.model_dump_json()) == seen


def test_removed_and_written_files_are_listed(box: Box) -> None:
    """Removed, written and created paths are among the changed ones; untouched ones aren't."""
    box.say("rm shutdown.sh; mkdir new; echo > new/file; echo >> .bashrc")
    changed = set(box.changed())
    assert {SCRIPT, f"{HOME}/new/file", f"{HOME}/.bashrc"} <= changed
    assert f"{HOME}/next_question" not in changed


def test_pipes_among_the_written_do_not_block(box: Box) -> None:
    """Pipes and sockets among the written files neither delay a snapshot nor count as regular files."""
    box.say(f"mkfifo a b c; {LISTEN.replace('shutdown.sh', 'd')}; echo > e")
    began = time.monotonic()
    assert [state.path for state in box.elsewhere() if state.path.startswith(HOME)] == [f"{HOME}/e"]
    assert time.monotonic() - began < 20


@pytest.mark.timeout(120)
def test_many_files_are_bounded(box: Box) -> None:
    """With 20,000 files a snapshot takes seconds, and the lists of files are cut at LISTED_PATHS."""
    box.say("mkdir many; cd many; seq 20000 | xargs touch")
    began = time.monotonic()
    assert box.state(SCRIPT).kind is FileKind.FILE
    assert len(box.elsewhere()) <= LISTED_PATHS
    assert len(box.changed()) <= LISTED_PATHS
    assert time.monotonic() - began < 60


@pytest.mark.timeout(60)
def test_deep_folders_are_no_failure_of_the_lab(box: Box, look: str) -> None:
    """Folders 3,000 deep raise no error, and with layers the files beside them are still listed."""
    box.say('python3 -c \'import os\nfor _ in range(3000): os.mkdir("d"); os.chdir("d")\'; echo > zzz')
    assert box.state(f"{HOME}/zzz").kind is FileKind.FILE
    written, changed = [state.path for state in box.elsewhere()], box.changed()
    assert look == "archive" or (f"{HOME}/zzz" in written and f"{HOME}/zzz" in changed)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "flicker",
    [
        pytest.param("os.rename(S, 'x'); os.rename('x', S)", id="away and back"),
        pytest.param("os.symlink('/etc', 'x'); os.rename(S, 'y'); os.rename('x', S); os.rename('y', S)", id="a link"),
    ],
)
def test_flickering_file_is_no_failure_of_the_lab(box: Box, flicker: str) -> None:
    """A script that a process moves away and back in a loop is sometimes seen in place, and never raises an error."""
    assert FileKind.FILE in kinds_seen_of(box, flicker)


def test_script_that_is_a_pipe_now_and_then_does_not_block(layers: Box) -> None:
    """With layers, reading a script that is a pipe now and then never waits for a writer.

    With archives it would: the engine opens the pipe, which it took for a file, and waits for ever.
    """
    pipe = "os.mkfifo('x'); os.rename(S, 'y'); os.rename('x', S); os.rename('y', S)"
    assert FileKind.FILE in kinds_seen_of(layers, pipe)


def kinds_seen_of(box: Box, flicker: str) -> set[FileKind]:
    """Read the script for at least two seconds while a process changes it in a loop; return the kinds of file seen."""
    loop = f"import os\nS = 'shutdown.sh'\nwhile True: {flicker}"
    box.say(f'setsid python3 -c "{loop}" >/dev/null 2>&1 &')
    began, kinds = time.monotonic(), set()
    while (passed := time.monotonic() - began) < 2 or (FileKind.FILE not in kinds and passed < 30):
        kinds.add(box.state(SCRIPT).kind)
        box.elsewhere()
    return kinds


def test_layers_are_read_where_they_can_be(boxes: Boxes) -> None:
    """A sandbox names how it is observed: by events and layers where the host allows that, else by archives."""
    box = boxes()
    way = "events/layers" if isinstance(box.sandbox.reader, OverlayReader) else "snapshots/archive"
    assert box.sandbox.watch == way
