"""Reads a container's files from its overlay layers on the host, without asking any process inside the container.

``OverlayReader`` takes under a millisecond and recognizes a renamed file by its inode. ``ArchiveReader`` (archive.py)
has the same interface and works with any engine, but it is slower and can only guess whether two files are the same. A
hostile process may have written the files, so neither class follows links, opens devices or pipes, or unpacks anything,
and every read is bounded.
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
    """The interface of the classes that read a container's files from outside the container."""

    @property
    def guarantee(self) -> str:
        """Return how files are read, "layers" or "archive", for the trial's record."""

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Read the state of the file at each path, and return the states in the same order."""

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Return the state of each path, and the states of regular files that the container has written or moved."""

    def changed_paths(self) -> tuple[str, ...]:
        """List the paths that differ from the image, at most ``LISTED_PATHS``."""


def missing(path: str) -> FileState:
    """Return the state of a path at which there is no file."""
    return FileState(path=path, kind=FileKind.MISSING)


def digest_of(read: Callable[[int], bytes], size: int) -> tuple[str, bytes | None]:
    """Return the SHA-256 hash of a file, and the file's content if it has at most ``CONTENT_BYTES``, otherwise None.

    ``read`` returns the next bytes of the file, at most as many as it is asked for. Of a file with ``HASHED_BYTES`` or
    more, only that many bytes are hashed, and "+" and ``size`` are appended to the hash.
    """
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
    """Opens folders of one overlay layer without following links, and keeps them open until ``close`` is called.

    ``top`` is the descriptor of the layer's root folder.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._known: dict[str, tuple[int | None, bool]] = {}

    def at(self, path: str) -> tuple[int | None, bool]:
        """Return the descriptor of the folder at a path, and whether the layer hides that path in the layers below it.

        The path "" is the layer's root folder. The descriptor is None if the layer has no folder at the path. A layer
        hides a path if the path was deleted or replaced in the layer. Raises OSError on an error of the host, such as
        too many open files.
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
        """Close all folders. Later calls of ``at`` open them again."""
        for folder, _ in self._known.values():
            if folder is not None:
                os.close(folder)
        self._known.clear()


class _SkipVanished:
    """Context manager that ignores an OSError in its block, because a file can vanish before it is read.

    ``host_failed`` is true after an error of the host, such as too many open files. Such an error is ignored too;
    otherwise an agent could make its trial fail by causing one.
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
    """The result of one walk through an overlay's upper layer.

    ``files`` are the states of all regular files, and ``changed`` are the paths of everything except folders. ``tops``
    are the names in the layer's root folder. ``folders`` maps each folder's path to its inode number and times of last
    change.
    """

    files: tuple[FileState, ...]
    changed: tuple[str, ...]
    tops: frozenset[str]
    folders: dict[str, tuple[int, ...]]

    def has_any(self, paths: tuple[str, ...]) -> bool:
        """Whether one of these paths may be in the layer: the layer has the path's first component."""
        return not self.tops.isdisjoint([path.split("/", 2)[1] for path in paths])

    def is_current(self, top: int) -> bool:
        """Whether the list of files is still right: no folder has been written to since the walk.

        ``top`` is the descriptor of the layer's root folder.
        """
        try:
            for path, then in self.folders.items():
                if _version(_stat_of(path, top)) != then:
                    return False
        except OSError:
            return False
        return True


@dataclass
class OverlayReader:
    """Reads the container's own layer (``upper``) and the layers below it (``lowers``, top one first) on the host.

    The upper layer stays open between reads, because opening its long path takes time. The caller must close the
    reader. If ``content_only`` is true, files larger than ``CONTENT_BYTES`` are neither read nor hashed.
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
        """Make a reader from the ``GraphDriver`` entry that ``docker inspect`` shows for a container.

        Returns None if the container's layers can't be read on this host.
        """
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
        """Return the descriptor of the upper layer's root folder, which is opened at the first call. Raises OSError."""
        if self._root is None:
            self._root = _opened(self.upper)
        return self._root

    def close(self) -> None:
        """Close the upper layer."""
        if self._root is not None:
            os.close(self._root)
            self._root = None

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Return the state of each path, and the states of all regular files in the upper layer.

        The states of the files in the upper layer contain only path, kind and identity. Raises OSError if the host
        can't read the layers.
        """
        paths, walked = tuple(paths), self._walked
        if walked and not walked.has_any(paths) and walked.is_current(self._upper_root()):
            self._cache_lower_states(paths)
            return tuple(self._lower_states[path] for path in paths), walked.files
        return self.states(
            paths
        ), self._walked_layer().files  # in this order, so that a file moved meanwhile is listed at its new place

    def untouched(self, path: str) -> bool:
        """Whether a path was certainly never written to: its first folder isn't in the upper layer.

        Any write to the file would have copied the file there. Raises OSError if the upper layer can't be read.
        """
        try:
            os.stat(path.split("/", 2)[1], dir_fd=self._upper_root(), follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Read the state of each path as the container sees it. Raises OSError if the host can't read the layers."""
        paths = tuple(paths)
        self._cache_lower_states(paths)
        with closing(_LayerFolders(self._upper_root())) as folders:
            return tuple(self._state(folders, path) for path in paths)

    def _state(self, folders: _LayerFolders, path: str) -> FileState:
        """Read the state of a path, and try again if the file is replaced between two system calls.

        After ``ATTEMPTS`` attempts without success, the file counts as missing.
        """
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

        The top one of these layers is this container's own. The others are the image's, and all its containers share
        them.
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
        """Yield the files and folders in the upper layer.

        At most ``LISTED_PATHS`` of them are yielded, and folders deeper than ``MAX_DEPTH`` levels aren't entered.
        """
        folder = _opened(".", self._upper_root())
        try:
            yield from islice(_walk_in(folder, "", 0, vanishing), LISTED_PATHS)
        finally:
            os.close(folder)

    def changed_paths(self) -> tuple[str, ...]:
        """List the paths in the upper layer, except folders.

        Deleted files of the image are listed too, because the upper layer marks each with a special file, a whiteout.
        """
        return self._walked_layer().changed

    def _walked_layer(self) -> _Walked:
        """Walk through the upper layer and return what was found.

        If no folder has been written to since the last walk, return the last walk's result instead.
        """
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
    """Read and cache the state of a path in the image's layers, which no container can write to.

    ``layers`` are the layers' folders, joined by colons with the top layer first. The state comes from the first layer
    in which the path exists or was deleted; without such a layer, None is returned. If ``content_only`` is true, a file
    larger than ``CONTENT_BYTES`` is neither read nor hashed. Raises OSError if a layer can't be read.
    """
    for layer in filter(None, layers.split(":")):
        with _layer(layer) as top, closing(_LayerFolders(top)) as folders:
            if state := _state_in(folders, path, content_only=content_only, fixed=True):
                return state
    return None


def _state_in(folders: _LayerFolders, path: str, *, content_only: bool, fixed: bool) -> FileState | None:
    """Read the state of a path in one layer. Return None if the path neither exists in the layer nor was deleted there.

    A deleted path has the state of a missing file. If ``content_only`` is true, a file larger than ``CONTENT_BYTES`` is
    neither read nor hashed. Pass ``fixed`` for a layer that never changes; then hashes are cached. Raises OSError if
    the file is replaced while it is read.
    """
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
    """Open a layer's root folder while the ``with`` block runs, and yield its descriptor."""
    top = _opened(path)
    try:
        yield top
    finally:
        os.close(top)


def _stat_of(path: str, top: int) -> os.stat_result:
    """Return the status (stat) of a path in the layer with the open root folder ``top``; the path "" is that folder."""
    return os.stat(path[1:], dir_fd=top, follow_symlinks=False) if path else os.stat(top)


def _version(folder: os.stat_result) -> tuple[int, ...]:
    """Return a folder's inode number, modification time and change time. Writing to the folder changes the times."""
    return folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns


def _opened(folder: str | Path, above: int | None = None) -> int:
    """Open a folder and return its descriptor. Raises OSError if the path is a link or isn't a folder.

    A relative path starts at the open folder ``above``.
    """
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)


def _raise_host_error(error: OSError) -> None:
    """Raise ``error`` if it is an error of the host, such as too many open files. Otherwise do nothing."""
    if error.errno in HOST_ERRORS:
        raise error


def as_text(path: str) -> str:
    """Return a path with its bytes that aren't valid UTF-8 replaced by escapes, so that it can be stored and shown."""
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
    """Return the cache of hashes and contents of the files in image layers.

    Its keys are device, inode number, change time and size of a file.
    """
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
    """Read the state of the file called ``name`` in the open folder ``folder``; ``found`` is the file's status (stat).

    If ``content_only`` is true, a file larger than ``CONTENT_BYTES`` is neither read nor hashed. Pass ``fixed`` for a
    file that never changes; then the hash is cached. Raises OSError if the file was replaced after ``found`` was read.
    """
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
    """Return the state of a file whose content isn't read, such as a folder. The states are cached."""
    return FileState(path=path, kind=kind, mode=stat.S_IMODE(mode), uid=uid, gid=gid)


def _file(name: str, folder: int) -> int:
    """Open the file called ``name`` in the open folder ``folder``, without blocking and without following a link.

    Opening it could block if it was replaced by a pipe. Raises OSError.
    """
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
    """Return an identity that an open file keeps when it is renamed.

    The overlay copies a file of the image to the upper layer before the file's first write or rename, and stores the
    original's handle with the copy. The copy's identity is that handle; any other file's identity is its own handle or
    inode number. See "overlay.origin" in the kernel's fs/overlayfs/copy_up.c, struct ovl_fb.
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
    """Return the kernel's handle of an open file as "type:hex", or None if the filesystem has no handles."""
    buffer = ctypes.create_string_buffer(_HANDLE.pack(_HANDLE.size - 8, 0, b""), _HANDLE.size)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _EMPTY_PATH) != 0:
        return None
    size, kind, handle = _HANDLE.unpack(buffer.raw)
    return f"{kind}:{handle[:size].hex()}"
