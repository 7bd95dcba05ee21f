"""Reads a container's files directly from its overlay layers on the host.

No process inside the container is involved. ``OverlayReader`` takes under a millisecond and recognizes a renamed file
by its inode. ``ArchiveReader`` (archive.py) has the same interface and works with any container engine. However, it is
slower and can only guess whether two files are the same. The files may come from a hostile process. Therefore neither
class follows links, opens devices or pipes, or unpacks files, and both limit how much they read.
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
from harness.sandbox.observe.mountinfo import Layers

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
    """The interface of a class that reads a container's files from outside the container."""

    @property
    def guarantee(self) -> str:
        """Return the method by which files are read, "layers" or "archive".

        The value is stored in the trial's record.
        """

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Return the state of the file at each path, in the order of ``paths``."""

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Return the states of ``paths``, and the states of all regular files that the container wrote or moved."""

    def changed_paths(self) -> tuple[str, ...]:
        """Return the paths at which the container's files differ from the image, at most ``LISTED_PATHS``."""


def missing(path: str) -> FileState:
    """Return the state of a path at which there is no file."""
    return FileState(path=path, kind=FileKind.MISSING)


def digest_of(read: Callable[[int], bytes], size: int) -> tuple[str, bytes | None]:
    """Return the SHA-256 hash and the content of a file. The content is None if it is longer than ``CONTENT_BYTES``.

    ``read`` returns the next bytes of the file, at most the requested number. ``size`` is the file's size in bytes. If
    the file has at least ``HASHED_BYTES`` bytes, only the first ``HASHED_BYTES`` are hashed, and "+" and ``size`` are
    appended to the hash.
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
    """Opens folders of one overlay layer without following symbolic links.

    The opened folders stay open until ``close`` is called. ``top`` is the descriptor of the layer's root folder.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._known: dict[str, tuple[int | None, bool]] = {}

    def at(self, path: str) -> tuple[int | None, bool]:
        """Return the layer's folder at ``path`` as a descriptor, and whether the layer hides ``path`` in lower layers.

        A layer hides a path that was deleted or replaced in this layer. The descriptor is None if the layer has no
        folder at the path. The path "" is the layer's root folder. Raises OSError if the host fails, for example
        because too many files are open.
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
        """Close all opened folders of the layer. Later calls of ``at`` open them again."""
        for folder, _ in self._known.values():
            if folder is not None:
                os.close(folder)
        self._known.clear()


class _SkipVanished:
    """A context manager that ignores every OSError, because a file may vanish before it is read.

    ``host_failed`` is true if one of the errors was a failure of the host, such as too many open files. Such errors are
    ignored too, so that an agent can't make its trial fail by causing them.
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

    ``files`` are the states of all regular files. ``changed`` are the paths of everything except folders. ``tops`` are
    the names of the entries in the layer's root folder. ``folders`` maps the path of each folder to the folder's inode
    number, modification time and change time.
    """

    files: tuple[FileState, ...]
    changed: tuple[str, ...]
    tops: frozenset[str]
    folders: dict[str, tuple[int, ...]]

    def has_any(self, paths: tuple[str, ...]) -> bool:
        """Return whether the first component of at least one of the paths exists in the layer's root folder."""
        return not self.tops.isdisjoint([path.split("/", 2)[1] for path in paths])

    def is_current(self, top: int) -> bool:
        """Return whether all folders of the upper layer are unchanged since the walk through them.

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
    """Reads a container's files from its overlay layers on the host.

    ``upper`` is the folder of the container's writable layer. ``lowers`` are the folders of the layers below it, with
    the top layer first. The upper layer stays open between reads, so the caller must call ``close``. If
    ``content_only`` is true, a file larger than ``CONTENT_BYTES`` is neither read nor hashed.
    """

    upper: Path
    lowers: tuple[str, ...]
    guarantee: str = "layers"
    content_only: bool = False  # a file larger than CONTENT_BYTES is not read and has no hash
    _lower_states: dict[str, FileState] = field(default_factory=dict, compare=False, repr=False)
    _walked: _Walked | None = field(default=None, compare=False, repr=False)
    _root: int | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, layers: Layers) -> OverlayReader | None:
        """Create a reader for a container's layers. Returns None if the layers can't be read on this host."""
        upper, (made, *image) = layers.upper, layers.lowers
        try:
            os.getxattr(upper, ORIGIN)
        except OSError as error:
            readable = error.errno != errno.EPERM and all(map(_readable, (upper, made))) and _image_readable(*image)
            if not readable or os.geteuid() != 0:
                return None
        return cls(Path(upper), (made, *image))

    def _upper_root(self) -> int:
        """Return the descriptor of the upper layer's root folder, which is opened at the first call.

        Raises OSError if the folder can't be opened.
        """
        if self._root is None:
            self._root = _opened(self.upper)
        return self._root

    def close(self) -> None:
        """Close the root folder of the upper layer."""
        if self._root is not None:
            os.close(self._root)
            self._root = None

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """Return the states of ``paths``, and the states of all regular files in the upper layer.

        The second tuple's states contain only path, kind and identity. Raises OSError if the host can't read the
        layers.
        """
        paths, walked = tuple(paths), self._walked
        if walked and not walked.has_any(paths) and walked.is_current(self._upper_root()):
            self._cache_lower_states(paths)
            return tuple(self._lower_states[path] for path in paths), walked.files
        return self.states(
            paths
        ), self._walked_layer().files  # in this order, so that a file moved meanwhile is listed at its new place

    def untouched(self, path: str) -> bool:
        """Return whether the container has certainly never written to the file at ``path``.

        This is true if the first folder of the path doesn't exist in the upper layer, because any write would have
        copied the file to this layer. Raises OSError if the upper layer can't be read.
        """
        try:
            os.stat(path.split("/", 2)[1], dir_fd=self._upper_root(), follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """Return the state of the file at each path as the container sees it.

        Raises OSError if the host can't read the layers.
        """
        paths = tuple(paths)
        self._cache_lower_states(paths)
        with closing(_LayerFolders(self._upper_root())) as folders:
            return tuple(self._state(folders, path) for path in paths)

    def _state(self, folders: _LayerFolders, path: str) -> FileState:
        """Return the state of the file at ``path``. Try again if the file is replaced while it is read.

        After ``ATTEMPTS`` failed attempts, the file is reported as missing.
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
        """Read and cache the states of ``paths`` in the lower layers, which no process can write to.

        The top one of these layers belongs to this container alone. The others belong to the image and are shared by
        all of its containers.
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
        """Yield the files and folders in the upper layer, at most ``LISTED_PATHS``.

        Folders deeper than ``MAX_DEPTH`` levels aren't entered. ``vanishing`` ignores errors that occur during the
        walk.
        """
        folder = _opened(".", self._upper_root())
        try:
            yield from islice(_walk_in(folder, "", 0, vanishing), LISTED_PATHS)
        finally:
            os.close(folder)

    def changed_paths(self) -> tuple[str, ...]:
        """Return the paths of everything in the upper layer except folders.

        Files of the image that the container has deleted are included, because the upper layer marks each of them with
        a special file, called a whiteout.
        """
        return self._walked_layer().changed

    def _walked_layer(self) -> _Walked:
        """Walk through the upper layer and return the files and folders found.

        If no folder has been written to since the last walk, the result of that walk is returned without a new walk.
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
    """Return the state of the file at ``path`` in the image's layers. The states are cached.

    ``layers`` are the folders of the layers, joined by colons, with the top layer first. The state comes from the first
    layer in which the path exists or was deleted. Returns None if there is no such layer. If ``content_only`` is true,
    a file larger than ``CONTENT_BYTES`` is neither read nor hashed. Raises OSError if a layer can't be read.
    """
    for layer in filter(None, layers.split(":")):
        with _layer(layer) as top, closing(_LayerFolders(top)) as folders:
            if state := _state_in(folders, path, content_only=content_only, fixed=True):
                return state
    return None


def _state_in(folders: _LayerFolders, path: str, *, content_only: bool, fixed: bool) -> FileState | None:
    """Return the state of the file at ``path`` in one layer, or None if the layer has no entry for the path.

    If the path was deleted in the layer, the state of a missing file is returned. If ``content_only`` is true, a file
    larger than ``CONTENT_BYTES`` is neither read nor hashed. If ``fixed`` is true, hashes are cached. This is only
    correct for a layer that never changes. Raises OSError if the file is replaced while it is read.
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
    """Open the root folder of a layer, yield its descriptor, and close the folder after the ``with`` block."""
    top = _opened(path)
    try:
        yield top
    finally:
        os.close(top)


def _stat_of(path: str, top: int) -> os.stat_result:
    """Return the ``stat`` result of the file at ``path`` in a layer. The path "" is the layer's root folder.

    ``top`` is the descriptor of the layer's root folder.
    """
    return os.stat(path[1:], dir_fd=top, follow_symlinks=False) if path else os.stat(top)


def _version(folder: os.stat_result) -> tuple[int, ...]:
    """Return a folder's inode number, modification time and change time. Writing to the folder changes the times."""
    return folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns


def _opened(folder: str | Path, above: int | None = None) -> int:
    """Open a folder and return its descriptor.

    ``above`` is the descriptor of the folder at which a relative path starts. Raises OSError if the path is a symbolic
    link or isn't a folder.
    """
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)


def _raise_host_error(error: OSError) -> None:
    """Raise ``error`` if it is a failure of the host, such as too many open files. Otherwise do nothing."""
    if error.errno in HOST_ERRORS:
        raise error


def as_text(path: str) -> str:
    """Return ``path`` with escape sequences in place of bytes that aren't valid UTF-8."""
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
    """Return the cache of the hashes and contents of files in layers that never change.

    Each key consists of a file's device, inode number, change time and size.
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
    """Return the state of the file ``name`` in the open folder ``folder``.

    ``path`` is the file's path in the container, and ``found`` is its ``stat`` result. If ``content_only`` is true, a
    file larger than ``CONTENT_BYTES`` is neither read nor hashed. If ``fixed`` is true, the hash is cached. This is
    only correct for a file that never changes. Raises OSError if the file was replaced after ``found`` was read.
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
    """Open the file ``name`` in the open folder ``folder``, and return the file's descriptor.

    Symbolic links aren't followed, and opening a pipe doesn't block. Raises OSError if the file can't be opened.
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
    """Return an open file's identity, which stays the same when the file is renamed.

    Before a file of the image is first written to or renamed, overlayfs copies it to the upper layer and stores the
    original file's handle with the copy. The identity of such a copy is the stored handle. The identity of any other
    file is its own handle or inode number. See "overlay.origin" in the kernel's fs/overlayfs/copy_up.c, struct ovl_fb.
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
