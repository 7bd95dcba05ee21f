"""An index of the tests for each resource and isolation bound, and the tests for hostile archives."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest
from docker.models.containers import Container  # noqa: TID251 - the type that Answers stands for

from harness.judging.evidence import FileKind
from harness.sandbox.observe.archive import ArchiveReader

TESTS = Path(__file__).parent
BOUNDS = {
    "output of a gigabyte": "test_docker_sandbox.py::test_endless_output_is_bounded",
    "a fork bomb": "test_docker_sandbox.py::test_fork_bomb_is_contained",
    "a fork bomb outside its session": "test_docker_sandbox.py::test_fork_bomb_that_leaves_its_session_is_contained",
    "memory used up": "test_docker_sandbox.py::test_memory_hog_is_killed",
    "a disk filled": "test_disk_quota.py::test_a_machine_that_fills_the_disk_goes_down",
    "disk space reserved in advance": "test_disk_quota.py::test_space_is_not_reserved_at_once",
    "ten thousand new files": "test_observe.py::test_many_files_are_bounded",
    "endless nested folders": "test_observe.py::test_deep_folders_are_no_failure_of_the_lab",
    "names with newlines or invalid UTF-8": "test_observe.py::test_odd_names_are_listed",
    "a watched file whose name is invalid UTF-8": (
        "test_watch_daemon.py::test_a_watched_file_under_a_name_that_is_no_text_can_be_stored"
    ),
    "endless large edits": "test_watch_daemon.py::test_what_is_kept_of_large_edits_is_bounded",
    "output that is invalid UTF-8": "test_docker_sandbox.py::test_bytes_that_are_not_utf8_survive",
    "a command that never returns": "test_docker_sandbox.py::test_command_past_its_limit_is_killed",
    "links that point out of the container": "test_observe.py::test_links_cannot_climb_out",
    "folders that became links": "test_observe.py::test_folder_replaced_by_a_link_shows_nothing_of_the_host",
    "a huge sparse file": "test_observe.py::test_huge_sparse_file_is_read_quickly",
    "hostile archives": "test_bounds.py::test_a_hostile_archive_is_only_looked_at",
    "endless questions": "test_docker_sandbox.py::test_flood_of_questions_is_bounded",
    "endless starts of the kill switch": "test_exec_gate.py::test_a_flood_of_starts_makes_the_accesses_unknown",
    "limits of the container": "test_docker_sandbox.py::test_limits_are_set",
    "no network": "test_docker_sandbox.py::test_agent_has_no_network",
    "no host path": "test_docker_sandbox.py::test_nothing_of_the_host_is_mounted",
    "no engine socket": "test_docker_sandbox.py::test_no_engine_socket_is_inside",
    "no secret": "test_docker_sandbox.py::test_environment_is_exactly_what_is_meant",
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_each_bound_has_its_test(bound: str) -> None:
    """The test that the index names for a bound exists and has a docstring."""
    file, _, name = BOUNDS[bound].partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert ast.get_docstring(found)


class Answers:
    """A fake container that returns the same archive bytes for every path."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive

    def get_archive(self, path: str, chunk_size: int) -> tuple[Any, dict[str, Any]]:
        """Return the archive in chunks of 100 bytes."""
        return (self.archive[at : at + 100] for at in range(0, len(self.archive), 100)), {}


def an_archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Build a tar archive of these members."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def a_member(name: str, kind: bytes = tarfile.REGTYPE, **other: Any) -> tarfile.TarInfo:
    """Build one tar header."""
    member = tarfile.TarInfo(name)
    member.type = kind
    for what, value in other.items():
        setattr(member, what, value)
    return member


FILE = (a_member("../../etc/passwd", size=4), b"mine")
HOSTILE = {
    "a name that climbs out": (an_archive(FILE), FileKind.FILE),
    "an absolute name": (an_archive((a_member("/etc/passwd", size=4), b"mine")), FileKind.FILE),
    "a link to the host": (an_archive((a_member("s", tarfile.SYMTYPE, linkname="/etc/shadow"), b"")), FileKind.SYMLINK),
    "a device": (an_archive((a_member("s", tarfile.CHRTYPE, devmajor=1, devminor=1), b"")), FileKind.DEVICE),
    "a hard link to a path of the host": (
        an_archive((a_member("s", tarfile.LNKTYPE, linkname="/etc/shadow"), b"")),
        FileKind.DEVICE,
    ),
    "a truncated member": (an_archive((a_member("s", size=4), b"mine"))[:520], FileKind.FILE),
    "an empty reply": (b"", FileKind.MISSING),
    "bytes that are no archive": (b"x" * 2000, FileKind.MISSING),
    "a second member": (an_archive(FILE, FILE), FileKind.FILE),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_only_looked_at(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile archive is only described as a file state: nothing in it is unpacked or followed."""
    monkeypatch.chdir(tmp_path)
    archive, kind = HOSTILE[what]
    (state,) = ArchiveReader(cast("Container", Answers(archive))).states(["/home/user/shutdown.sh"])
    assert state.kind is kind
    assert state.content in (None, b"mine", b"mine\0\0\0\0")
    assert list(tmp_path.iterdir()) == []
