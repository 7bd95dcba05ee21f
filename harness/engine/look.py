"""Looking into a container's filesystem from outside, without asking anything inside it.

Two ways with one result. ``LayersLook`` reads the overlay's directories on the host: under a millisecond, and it
knows a file by its identity. ``ArchiveLook`` (harness/engine/archive.py) asks the engine for an archive of each path:
slower, works with any engine, and can only guess at identity. Everything read was written by a hostile process: no
link is followed, no device or pipe is opened, nothing is unpacked, and what is read is bounded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

from harness.evidence import FileKind, FileState

CONTENT_BYTES = 64 * 1024
HASHED_BYTES = 64 * 1024 * 1024
LISTED_PATHS = 10_000
DEPTH = 64
ATTEMPTS = 20
OPAQUE = "trusted.overlay.opaque"
ORIGIN = "trusted.overlay.origin"

_KINDS: tuple[tuple[Callable[[int], bool], FileKind], ...] = (
    (stat.S_ISREG, FileKind.FILE),
    (stat.S_ISDIR, FileKind.DIRECTORY),
    (stat.S_ISLNK, FileKind.SYMLINK),
    (stat.S_ISFIFO, FileKind.FIFO),
    (stat.S_ISSOCK, FileKind.SOCKET),
    (stat.S_ISCHR, FileKind.DEVICE),
    (stat.S_ISBLK, FileKind.DEVICE),
)


class Look(Protocol):
    """One way to see a container's files. ``guarantee`` goes into the record."""

    @property
    def guarantee(self) -> str:
        """The way's name."""

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """The state of each path, in order."""

    def elsewhere(self) -> tuple[FileState, ...]:
        """Regular files that the container has written or moved, wherever they stand."""

    def changed_paths(self) -> tuple[str, ...]:
        """Every path that differs from the image, at most ``LISTED_PATHS``."""


def missing(path: str) -> FileState:
    """The state of a path at which nothing stands."""
    return FileState(path=path, kind=FileKind.MISSING)


def digest_of(read: Callable[[int], bytes], size: int) -> tuple[str, bytes | None]:
    """Hash of at most ``HASHED_BYTES`` (the size stands in for the rest), and the content if it is small."""
    hashed, kept, left = hashlib.sha256(), b"", HASHED_BYTES
    while left and (chunk := read(min(left, 1 << 20))):
        hashed.update(chunk)
        left -= len(chunk)
        if len(kept) <= CONTENT_BYTES:
            kept += chunk
    digest = hashed.hexdigest() if left else f"{hashed.hexdigest()}+{size}"
    return digest, kept if len(kept) <= CONTENT_BYTES else None


# ---- the host's way ----


@dataclass(frozen=True)
class LayersLook:
    """Reads an overlay's layers on the host, the container's own (``upper``) before the image's (``lowers``)."""

    upper: Path
    lowers: tuple[Path, ...]
    guarantee: str = "layers"
    content_only: bool = False  # a file too large to keep is not read at all, and has no hash

    @classmethod
    def of(cls, graph_driver: dict[str, object]) -> LayersLook | None:
        """The look for what ``docker inspect`` says of a container, or None where this host can't read it."""
        data = graph_driver.get("Data")
        if graph_driver.get("Name") != "overlay2" or not isinstance(data, dict):
            return None
        upper, lowers = Path(data["UpperDir"]), tuple(Path(p) for p in data["LowerDir"].split(":"))
        try:
            os.getxattr(upper, ORIGIN)
        except OSError as error:
            readable = error.errno != 1 and all(os.access(p, os.R_OK | os.X_OK) for p in (upper, *lowers))
            return cls(upper, lowers) if readable and os.geteuid() == 0 else None
        return cls(upper, lowers)

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """The state of each path, as the container sees it."""
        return tuple(self._state(path) for path in paths)

    def _state(self, path: str) -> FileState:
        """The state of a path; one that is another thing between two system calls is looked at again."""
        for _ in range(ATTEMPTS):
            with suppress(OSError):
                return self._state_once(path)
        return missing(path)

    def _state_once(self, path: str) -> FileState:
        """The state of a path: the container's own layer has the first word, and mostly has none."""
        own = _state_in((self.upper,), path, content_only=self.content_only, fixed=False)
        return own or _image_state(self.lowers, path, self.content_only) or missing(path)

    def _open_layer(self, stack: ExitStack, layer: Path) -> int:
        return _opened(stack, layer, os.O_PATH | os.O_DIRECTORY)

    def _walk(self) -> Iterator[tuple[str, str, int, os.stat_result]]:
        """Path, name, directory and stat of what the container's own layer holds, bounded in number and depth."""
        with ExitStack() as stack:
            yield from islice(self._walk_in(self._open_layer(stack, self.upper), "", 0), LISTED_PATHS)

    def _walk_in(self, folder: int, inside: str, depth: int) -> Iterator[tuple[str, str, int, os.stat_result]]:
        with suppress(OSError):  # what goes away between listing and looking is not there
            child = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder)
            try:
                with os.scandir(child) as entries:
                    names = sorted(entry.name for entry in islice(entries, LISTED_PATHS))
            finally:
                os.close(child)
            for name in names:
                yield from self._entry(folder, inside, name, depth)

    def _entry(self, folder: int, inside: str, name: str, depth: int) -> Iterator[tuple[str, str, int, os.stat_result]]:
        with suppress(OSError):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            yield f"{inside}/{name}", name, folder, found
            if stat.S_ISDIR(found.st_mode) and depth < DEPTH:
                with ExitStack() as stack:
                    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                    stack.callback(os.close, inner)
                    yield from self._walk_in(inner, f"{inside}/{name}", depth + 1)

    def elsewhere(self) -> tuple[FileState, ...]:
        """Every regular file in the container's own layer, by identity, its content unread."""
        return tuple(
            FileState(path=as_text(path), kind=FileKind.FILE, identity=_identity(name, fd, found))
            for path, name, fd, found in self._walk()
            if stat.S_ISREG(found.st_mode)
        )

    def changed_paths(self) -> tuple[str, ...]:
        """What the container's own layer holds, whiteouts included."""
        return tuple(sorted(as_text(path) for path, _, _, found in self._walk() if not stat.S_ISDIR(found.st_mode)))


@lru_cache(maxsize=1_000)  # some hundred containers at a time
def _image_state(layers: tuple[Path, ...], path: str, content_only: bool) -> FileState | None:
    """What an image has at a path: no container can write to it, so it is looked up once."""
    return _state_in(layers, path, content_only=content_only, fixed=True)


def _state_in(layers: tuple[Path, ...], path: str, *, content_only: bool, fixed: bool) -> FileState | None:
    """The state of a path in these layers, or None where they leave it to those below. Raises OSError."""
    *parents, name = path.strip("/").split("/")
    with ExitStack() as stack:
        folders = [_opened(stack, layer, os.O_PATH | os.O_DIRECTORY) for layer in layers]
        hides = False
        for part in parents:
            folders, hidden = _descended(stack, folders, part)
            hides = hides or hidden
        for fd in folders:
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if _is_whiteout(found):
                return missing(path)
            read = not content_only or found.st_size <= CONTENT_BYTES
            return _file_state(path, name, fd, found, read=read, fixed=fixed)
    return missing(path) if hides else None


def _descended(stack: ExitStack, folders: list[int], part: str) -> tuple[list[int], bool]:
    """The directories called ``part`` in these, and whether one of them, or what stands there, hides all below."""
    inner: list[int] = []
    for folder in folders:
        try:
            inner.append(_opened(stack, part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, folder))
        except FileNotFoundError:
            continue
        except OSError:
            return inner, True  # a file, link or whiteout of that name
        if _xattr(inner[-1], OPAQUE) == b"y":
            return inner, True
    return inner, False


def _opened(stack: ExitStack, name: str | Path, flags: int, folder: int | None = None) -> int:
    fd = os.open(name, flags, dir_fd=folder)
    stack.callback(os.close, fd)
    return fd


def as_text(path: str) -> str:
    """A name that is no UTF-8 made fit to store and show."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _xattr(target: int | str, name: str) -> bytes | None:
    try:
        return os.getxattr(target, name)
    except OSError:
        return None


@cache
def _fixed_digests() -> dict[tuple[int, int, int, int], tuple[str, bytes | None]]:
    """Digests of files in image layers, which no container can write to, by device, inode, change time and size."""
    return {}


def _fixed_digest(read: Callable[[int], bytes], found: os.stat_result) -> tuple[str, bytes | None]:
    known, key = _fixed_digests(), (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)
    if key not in known:
        if len(known) >= LISTED_PATHS:
            known.clear()
        known[key] = digest_of(read, found.st_size)
    return known[key]


def _file_state(path: str, name: str, parent: int, found: os.stat_result, *, read: bool, fixed: bool) -> FileState:
    kind = next(kind for test, kind in _KINDS if test(found.st_mode))
    digest = content = target = identity = None
    if kind is FileKind.FILE:
        # Without blocking: what was a file a moment ago may be a pipe by now.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        with os.fdopen(fd, "rb", buffering=0) as file:
            if read and stat.S_ISREG(os.fstat(fd).st_mode):
                digest, content = _fixed_digest(file.read, found) if fixed else digest_of(file.read, found.st_size)
        identity = _identity(name, parent, found)
    elif kind is FileKind.SYMLINK:
        target = as_text(os.readlink(name, dir_fd=parent))
    return FileState(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if kind is FileKind.FILE else None,
        sha256=digest,
        target=target,
        identity=identity,
        content=content,
    )


def _identity(name: str, parent: int, found: os.stat_result) -> str:
    """What names this file whatever it is called.

    A file of the image keeps its handle: the overlay copies it up on the first write or rename and notes the
    original's handle on the copy. See "overlay.origin" in the kernel's fs/overlayfs/copy_up.c, struct ovl_fb.
    """
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        try:
            origin = _xattr(fd, ORIGIN)
        finally:
            os.close(fd)
        if origin and len(origin) > 21:
            return f"{origin[4]}:{origin[21:].hex()}"
        if origin is None and (handle := _handle(name, parent)):
            return handle
    return f"inode:{found.st_ino}"


_libc = ctypes.CDLL(None, use_errno=True)


def _handle(name: str, parent: int) -> str | None:
    """The kernel's handle of a file as "type:hex", or None where the filesystem has none."""
    size = 128
    buffer = ctypes.create_string_buffer(8 + size)
    ctypes.c_uint32.from_buffer(buffer).value = size
    mount = ctypes.c_int()
    done = _libc.name_to_handle_at(parent, os.fsencode(name), buffer, ctypes.byref(mount), 0)
    if done != 0:
        return None
    length = ctypes.c_uint32.from_buffer(buffer).value
    return f"{ctypes.c_int32.from_buffer(buffer, 4).value}:{buffer.raw[8 : 8 + length].hex()}"
