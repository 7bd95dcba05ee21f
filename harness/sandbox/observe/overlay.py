"""Reads a container's files from its overlay layers on the host, without asking any process inside the container.

``OverlayReader`` takes under a millisecond and recognises a file by its inode. ``ArchiveReader`` (archive.py) gives the
same results through the engine: slower, with any engine, and guessing at a file's identity. A hostile process wrote all
of these files, so no link is followed, no device or pipe is opened, nothing is unpacked, and every read is bounded.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from harness.judging.evidence import FileKind, FileState

CONTENT_BYTES = 64 * 1024
HASHED_BYTES = 64 * 1024 * 1024
LISTED_PATHS = 10_000
MAX_DEPTH = 64
ATTEMPTS = 20
OPAQUE = "trusted.overlay.opaque"
ORIGIN = "trusted.overlay.origin"
BUFFER_BYTES = 1 << 16  # for a larger buffer, Python asks the kernel for memory at each read
SETTLED_NS = 50_000_000  # a folder not written to for this long has a modification time of its own
MAX_CACHED_FOLDERS = 50  # with more, checking each folder's times is no faster than a walk
HOST_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}

_KINDS: tuple[tuple[Callable[[int], bool], FileKind], ...] = (
    (stat.S_ISREG, FileKind.FILE),
    (stat.S_ISDIR, FileKind.DIRECTORY),
    (stat.S_ISLNK, FileKind.SYMLINK),
    (stat.S_ISFIFO, FileKind.FIFO),
    (stat.S_ISSOCK, FileKind.SOCKET),
    (stat.S_ISCHR, FileKind.DEVICE),
    (stat.S_ISBLK, FileKind.DEVICE),
)


class FilesystemReader(Protocol):
    """Reads a container's files from outside."""

    @property
    def guarantee(self) -> str:
        """Name the way of reading, for the trial's record."""

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Read the state of each path, in order."""

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Read the state of each path, and of all regular files that the container has written or moved."""

    def changed_paths(self) -> tuple[str, ...]:
        """List every path that differs from the image, at most ``LISTED_PATHS``."""


def missing(path: str) -> FileState:
    """Return the state of a path at which there is no file."""
    return FileState(path=path, kind=FileKind.MISSING)


def digest_of(read: Callable[[int], bytes], size: int) -> tuple[str, bytes | None]:
    """Return the hash and, up to ``CONTENT_BYTES``, the content; beyond ``HASHED_BYTES`` the size replaces the rest."""
    hashed, kept, left = hashlib.sha256(), b"", HASHED_BYTES
    while left and (chunk := read(min(left, BUFFER_BYTES))):
        hashed.update(chunk)
        left -= len(chunk)
        if len(kept) <= CONTENT_BYTES:
            kept += chunk
    digest = hashed.hexdigest() if left else f"{hashed.hexdigest()}+{size}"
    return digest, kept if len(kept) <= CONTENT_BYTES else None


# ---- reading layers on the host ----


class _LayerFolders:
    """Opens each folder of one layer once, following no link; ``top`` is the layer's root. The caller closes it."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._known: dict[str, tuple[int | None, bool]] = {}

    def at(self, path: str) -> tuple[int | None, bool]:
        """Return the open folder at a path ("" is the root), or None, and whether this layer hides lower layers' path.

        Raises OSError where the host itself fails.
        """
        if not path:
            return self._top, False
        if path not in self._known:
            self._known[path] = self._open(path)
        return self._known[path]

    def _open(self, path: str) -> tuple[int | None, bool]:
        above, _, name = path.rpartition("/")
        folder, hides = self.at(above)
        if folder is None:
            return None, hides
        try:
            inner = _opened(name, folder)
        except FileNotFoundError:
            return None, hides
        except OSError as error:
            _raise_host_error(error)
            return None, True  # a file, link or whiteout of that name
        return inner, hides or _xattr(inner, OPAQUE) == b"y"

    def close(self) -> None:
        """Close all folders; later requests open them again."""
        for folder, _ in self._known.values():
            if folder is not None:
                os.close(folder)
        self._known.clear()


class _SkipVanished:
    """Context manager that treats files which vanish between listing and reading as absent.

    ``host_failed``: the host itself couldn't read a file, such as with too many files open. The walk goes on even then:
    it keeps a file open for each level, so an agent could otherwise turn its trial into an error by deep folders.
    """

    host_failed = False

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        self.host_failed = self.host_failed or error.errno in HOST_ERRORS
        return True


_Entry = tuple[str, str, int, os.stat_result]  # path, name, open parent folder, and status


def _walk_in(folder: int, inside: str, depth: int, vanishing: _SkipVanished) -> Iterator[_Entry]:
    with vanishing:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, LISTED_PATHS))
        for name in names:
            yield from _entry(folder, inside, name, depth, vanishing)


def _entry(folder: int, inside: str, name: str, depth: int, vanishing: _SkipVanished) -> Iterator[_Entry]:
    with vanishing:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        yield f"{inside}/{name}", name, folder, found
        if stat.S_ISDIR(found.st_mode) and depth < MAX_DEPTH:
            inner = _opened(name, folder)
            try:
                yield from _walk_in(inner, f"{inside}/{name}", depth + 1, vanishing)
            finally:
                os.close(inner)


@dataclass(frozen=True)
class _Walked:
    """The result of a walk: regular files, names in the top folder, and each folder's inode and modification times.

    ``changed`` are the paths of everything but folders.
    """

    files: tuple[FileState, ...]
    changed: tuple[str, ...]
    tops: frozenset[str]
    folders: dict[str, tuple[int, ...]]

    def has_any(self, paths: tuple[str, ...]) -> bool:
        """Whether one of these paths may be in the layer."""
        return not self.tops.isdisjoint([path.split("/", 2)[1] for path in paths])

    def is_current(self, top: int) -> bool:
        """Whether no folder has been written to since the walk, so that the list of names still holds."""
        try:
            for path, then in self.folders.items():
                if _version(_stat_of(path, top)) != then:
                    return False
        except OSError:
            return False
        return True


@dataclass
class OverlayReader:
    """Reads an overlay's layers on the host: the container's own (``upper``) before the image's (``lowers``).

    Keeps the upper layer open, because opening its long path takes time. The caller closes the reader.
    """

    upper: Path
    lowers: tuple[str, ...]
    guarantee: str = "layers"
    content_only: bool = False  # a file larger than CONTENT_BYTES is not read and has no hash
    _lower_states: dict[str, FileState] = field(default_factory=dict, compare=False, repr=False)
    _walked: _Walked | None = field(default=None, compare=False, repr=False)
    _root: int | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, graph_driver: dict[str, object]) -> OverlayReader | None:
        """Make a reader from ``docker inspect``'s graph driver; None where the layers can't be read on this host."""
        data = graph_driver.get("Data")
        if graph_driver.get("Name") != "overlay2" or not isinstance(data, dict):
            return None
        upper, (made, *image) = data["UpperDir"], data["LowerDir"].split(":")
        try:
            os.getxattr(upper, ORIGIN)
        except OSError as error:
            readable = error.errno != errno.EPERM and all(map(_readable, (upper, made))) and _image_readable(*image)
            if not readable or os.geteuid() != 0:
                return None
        return cls(Path(upper), (made, *image))

    def _upper_root(self) -> int:
        """Return the upper layer's root, open. Raises OSError."""
        if self._root is None:
            self._root = _opened(self.upper)
        return self._root

    def close(self) -> None:
        """Close the upper layer."""
        if self._root is not None:
            os.close(self._root)
            self._root = None

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Read the state of each path, and list the upper layer's regular files with their identity but no content.

        Raises OSError where the host itself fails.
        """
        paths, walked = tuple(paths), self._walked
        if walked and not walked.has_any(paths) and walked.is_current(self._upper_root()):
            self._cache_lower_states(paths)
            return tuple(self._lower_states[path] for path in paths), walked.files
        return self.states(
            paths
        ), self._walked_layer().files  # in this order, so that a file moved meanwhile is listed at its new place

    def untouched(self, path: str) -> bool:
        """Whether a path was never written to, because its first folder isn't in the upper layer. Raises OSError.

        Every write to a file, through any name or mapping, goes to a copy in the upper layer.
        """
        try:
            os.stat(path.split("/", 2)[1], dir_fd=self._upper_root(), follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Read the state of each path as the container sees it. Raises OSError where the host itself fails."""
        paths = tuple(paths)
        self._cache_lower_states(paths)
        with closing(_LayerFolders(self._upper_root())) as folders:
            return tuple(self._state(folders, path) for path in paths)

    def _state(self, folders: _LayerFolders, path: str) -> FileState:
        """Read the state of a path, again where the file is replaced between two system calls."""
        for _ in range(ATTEMPTS):
            try:
                # The upper layer comes first, and usually doesn't have the path.
                return _state_in(folders, path, content_only=self.content_only, fixed=False) or self._lower_states[path]
            except OSError as error:
                _raise_host_error(error)
                folders.close()
        return missing(path)

    def _cache_lower_states(self, paths: tuple[str, ...]) -> None:
        """Read and cache the states of paths in the lower layers, which no process can write to.

        The first of them was made for this container only; many containers share those below, the image's.
        """
        if not (unknown := [path for path in paths if path not in self._lower_states]):
            return
        (made, *others), only = self.lowers, self.content_only
        image = ":".join(others)
        with _layer(made) as top, closing(_LayerFolders(top)) as folders:
            for path in unknown:
                state = _state_in(folders, path, content_only=only, fixed=True) or _image_state(image, path, only)
                self._lower_states[path] = state or missing(path)

    def _walk(self, vanishing: _SkipVanished) -> Iterator[_Entry]:
        """Walk the upper layer, up to ``LISTED_PATHS`` entries and ``MAX_DEPTH`` levels."""
        folder = _opened(".", self._upper_root())
        try:
            yield from islice(_walk_in(folder, "", 0, vanishing), LISTED_PATHS)
        finally:
            os.close(folder)

    def changed_paths(self) -> tuple[str, ...]:
        """List the paths in the upper layer except folders; a whiteout stands for a deleted file."""
        return self._walked_layer().changed

    def _walked_layer(self) -> _Walked:
        """Walk the upper layer, or return the last walk where no folder has been written to since."""
        if self._walked and self._walked.is_current(self._upper_root()):
            return self._walked
        began, count, files, changed, tops, vanishing = time.time_ns(), 0, [], [], set(), _SkipVanished()
        if not (top := os.stat(self._upper_root())).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the container's own layer was removed", str(self.upper))
        folders = {"": _version(top)}
        for path, name, folder, found in self._walk(vanishing):
            count += 1
            tops.add(path.split("/", 2)[1])
            if stat.S_ISDIR(found.st_mode):
                folders[path] = _version(found)
                continue
            changed.append(as_text(path))
            if stat.S_ISREG(found.st_mode):
                identity = _identity_at(name, folder, found)
                files.append(FileState(path=changed[-1], kind=FileKind.FILE, identity=identity))
        # Two writes to a folder within one tick of the kernel's clock leave the same time.
        settled = all(max(times) < began - SETTLED_NS for _, *times in folders.values())
        complete = count < LISTED_PATHS and not vanishing.host_failed
        walked = _Walked(tuple(files), tuple(sorted(changed)), frozenset(tops), folders)
        self._walked = walked if settled and complete and len(folders) <= MAX_CACHED_FOLDERS else None
        return walked


def _readable(layer: str) -> bool:
    return os.access(layer, os.R_OK | os.X_OK)


@lru_cache(maxsize=100)  # many containers have the same image
def _image_readable(*layers: str) -> bool:
    return all(map(_readable, layers))


@lru_cache(maxsize=1_000)
def _image_state(layers: str, path: str, content_only: bool) -> FileState | None:
    """Read and cache a path's state in an image, which no container can write to. Raises OSError.

    ``layers`` are joined by colons as overlayfs has them, top one first; the first that has or hides the path counts.
    """
    for layer in filter(None, layers.split(":")):
        with _layer(layer) as top, closing(_LayerFolders(top)) as folders:
            if state := _state_in(folders, path, content_only=content_only, fixed=True):
                return state
    return None


def _state_in(folders: _LayerFolders, path: str, *, content_only: bool, fixed: bool) -> FileState | None:
    """Read a path's state in one layer; None where the layer neither has nor hides the path. Raises OSError."""
    above, _, name = path.strip("/").rpartition("/")
    folder, hides = folders.at(above)
    absent = missing(path) if hides else None
    if folder is None:
        return absent
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return absent
    if _is_whiteout(found):
        return missing(path)
    return _file_state(path, name, folder, found, content_only=content_only, fixed=fixed)


@contextmanager
def _layer(path: str) -> Iterator[int]:
    """Open a layer's root while the block runs."""
    top = _opened(path)
    try:
        yield top
    finally:
        os.close(top)


def _stat_of(path: str, top: int) -> os.stat_result:
    """Read the status of a path in a layer ("" is the layer's root)."""
    return os.stat(path[1:], dir_fd=top, follow_symlinks=False) if path else os.stat(top)


def _version(folder: os.stat_result) -> tuple[int, ...]:
    """Return a folder's inode number and the times of its last change."""
    return folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns


def _opened(folder: str | Path, above: int | None = None) -> int:
    """Open a folder; raise OSError where the path is a link."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)


def _raise_host_error(error: OSError) -> None:
    """Raise an error of the host itself, which must not be taken for something that the container did."""
    if error.errno in HOST_ERRORS:
        raise error


def as_text(path: str) -> str:
    """Escape the bytes of a file name that aren't valid UTF-8, so that it can be stored and shown."""
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
    """Return the cache of hashes and contents of image files, by device, inode, change time and size."""
    return {}


def _fixed_digest(read: Callable[[int], bytes], found: os.stat_result) -> tuple[str, bytes | None]:
    known, key = _fixed_digests(), (found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)
    if key not in known:
        if len(known) >= LISTED_PATHS:
            known.clear()
        known[key] = digest_of(read, found.st_size)
    return known[key]


def _file_state(
    path: str, name: str, folder: int, found: os.stat_result, *, content_only: bool, fixed: bool
) -> FileState:
    """Read the state of the file whose status is ``found``. Raises OSError where the file was replaced meanwhile."""
    digest = content = target = identity = None
    if stat.S_ISREG(found.st_mode):
        fd = _file(name, folder)
        try:
            found = os.fstat(fd)  # the status of the very file that is read
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(path)
            if not content_only or found.st_size <= CONTENT_BYTES:
                read = partial(os.read, fd)
                digest, content = _fixed_digest(read, found) if fixed else digest_of(read, found.st_size)
            identity = _identity(fd, found)
        finally:
            os.close(fd)
    elif stat.S_ISLNK(found.st_mode):
        target = as_text(os.readlink(name, dir_fd=folder))
    kind = next(kind for test, kind in _KINDS if test(found.st_mode))
    if target is None and kind is not FileKind.FILE:
        return _plain_state(path, kind, found.st_mode, found.st_uid, found.st_gid)
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


@lru_cache(maxsize=1_000)
def _plain_state(path: str, kind: FileKind, mode: int, uid: int, gid: int) -> FileState:
    """Return the cached state of a file without content, such as a folder, which mostly stays the same."""
    return FileState(path=path, kind=kind, mode=stat.S_IMODE(mode), uid=uid, gid=gid)


def _file(name: str, folder: int) -> int:
    """Open a file without blocking, because it may have been replaced by a pipe. Raises OSError."""
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)


def _identity_at(name: str, folder: int, found: os.stat_result) -> str:
    with suppress(OSError):
        fd = _file(name, folder)
        try:
            return _identity(fd, found)
        finally:
            os.close(fd)
    return f"inode:{found.st_ino}"


def _identity(fd: int, found: os.stat_result) -> str:
    """Return an identity that a file keeps when it is renamed.

    For a file of the image that is the original's handle: on the first write or rename the overlay copies the file up
    and stores this handle with the copy. See "overlay.origin" in the kernel's fs/overlayfs/copy_up.c, struct ovl_fb.
    """
    origin = _xattr(fd, ORIGIN)
    if origin and len(origin) > 21:
        return f"{origin[4]}:{origin[21:].hex()}"
    handle = _handle(fd) if origin is None else None
    return handle or f"inode:{found.st_ino}"


_libc = ctypes.CDLL(None, use_errno=True)
_HANDLE = struct.Struct("=Ii128s")  # size, type and bytes: struct file_handle, name_to_handle_at(2)
_EMPTY_PATH = 0x1000  # AT_EMPTY_PATH


def _handle(fd: int) -> str | None:
    """Return the kernel's handle of an open file as "type:hex"; None where the filesystem has none."""
    buffer = ctypes.create_string_buffer(_HANDLE.pack(_HANDLE.size - 8, 0, b""), _HANDLE.size)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _EMPTY_PATH) != 0:
        return None
    size, kind, handle = _HANDLE.unpack(buffer.raw)
    return f"{kind}:{handle[:size].hex()}"
