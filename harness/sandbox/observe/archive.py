"""Reads a container's files from tar archives that the container engine creates.

This module is used on hosts that can't read the container's overlay layers directly (overlay.py).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from posixpath import dirname

import docker.errors
from docker.models.containers import Container

from harness.judging.evidence import FileKind, FileState
from harness.sandbox.observe.overlay import LISTED_PATHS, as_text, digest_of, missing

DELETED = 2  # the engine's number for a deleted path


@dataclass(frozen=True)
class ArchiveReader:
    """Reads a container's files from tar archives that the container engine creates, one archive for each file.

    The archives don't contain inode numbers. Therefore a file's identity is derived from its modification time and
    content hash.
    """

    container: Container
    guarantee: str = "archive"

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Return the state of the file at each path. One request is sent to the engine for each path."""
        return tuple(self._state(path) for path in paths)

    def _state(self, path: str) -> FileState:
        try:
            stream, _ = self.container.get_archive(path, chunk_size=1 << 16)
        except docker.errors.NotFound:
            return missing(path)
        except docker.errors.APIError as error:  # the engine fails at a link to itself, at the path or above it
            looped = "too many links" in str(error.explanation) and self.exists(dirname(path))
            return FileState(path=path, kind=FileKind.SYMLINK) if looped else missing(path)
        try:
            with tarfile.open(fileobj=_Chunks(stream), mode="r|") as archive:
                member = archive.next()
                if member is None:  # an archive can hold any kind of file but a socket
                    return FileState(path=path, kind=FileKind.SOCKET)
                return _member_state(path, archive, member)
        except tarfile.TarError:
            return missing(path)

    def exists(self, path: str) -> bool:
        """Return whether the engine finds a file or folder at the path. Symbolic links are followed."""
        assert self.container.client is not None
        api = self.container.client.api
        answer = api.head(f"{api.base_url}/containers/{self.container.id}/archive", params={"path": path}, timeout=60)
        return bool(answer.ok)

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Return the states of ``paths``, and the states of the regular files that the container has added or changed.

        Only the first 50 of the added or changed paths are read.
        """
        states = self.states(paths)
        changed = [path for path, kind in self._diff() if kind != DELETED]
        return states, tuple(each for each in self.states(changed[:50]) if each.kind is FileKind.FILE)

    def changed_paths(self) -> tuple[str, ...]:
        """Return the paths that ``docker diff`` reports as added, changed or deleted, at most ``LISTED_PATHS``.

        An edited file is missing from the result if its size is unchanged and its modification time was restored.
        """
        return tuple(sorted(path for path, _ in self._diff()))[:LISTED_PATHS]

    def _diff(self) -> list[tuple[str, int]]:
        try:
            return [(str(entry["Path"]), int(entry["Kind"])) for entry in self.container.diff() or ()]
        except docker.errors.APIError:  # a container can make folders too deep for the engine
            return []


def _member_state(path: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> FileState:
    kinds = {
        tarfile.REGTYPE: FileKind.FILE,
        tarfile.DIRTYPE: FileKind.DIRECTORY,
        tarfile.SYMTYPE: FileKind.SYMLINK,
        tarfile.FIFOTYPE: FileKind.FIFO,
    }
    kind = kinds.get(member.type, FileKind.DEVICE)
    digest = content = None
    if kind is FileKind.FILE and (file := archive.extractfile(member)):
        digest, content = digest_of(file.read, member.size)
    return FileState(
        path=path,
        kind=kind,
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        size=member.size if kind is FileKind.FILE else None,
        sha256=digest,
        target=as_text(member.linkname) if kind is FileKind.SYMLINK else None,
        identity=f"{int(member.mtime)}:{digest}" if digest else None,
        content=content,
    )


class _Chunks(io.RawIOBase):
    """A file object that reads from an iterator of byte chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, None)):
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
