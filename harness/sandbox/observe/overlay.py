"""Looking into a container's filesystem from outside, without asking anything inside it.

Two ways with one result. ``LayersLook`` reads the overlay's directories on the host: under a millisecond, and it
knows a file by its identity. ``ArchiveLook`` (harness/sandbox/observe/archive.py) asks the engine for an archive of each path:
slower, works with any engine, and can only guess at identity. Everything read was written by a hostile process: no
link is followed, no device or pipe is opened, nothing is unpacked, and what is read is bounded.
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
DEPTH = 64
ATTEMPTS = 20
OPAQUE = "trusted.overlay.opaque"
ORIGIN = "trusted.overlay.origin"
AT_ONCE = 1 << 16  # bytes read at once: for more, Python asks the kernel for memory each time
SETTLED_NS = 50_000_000
FEW_FOLDERS = 50  # with more, asking each for its time is no quicker than a walk
HOSTS_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}

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
    """One way to see a container's files. ``guarantee`` goes into the record."""

    @property
    def guarantee(self) -> str:
        """The way's name."""

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """The state of each path, in order."""

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """The same, and the regular files that the container has written or moved, wherever they stand."""

    def changed_paths(self) -> tuple[str, ...]:
        """Every path that differs from the image, at most ``LISTED_PATHS``."""


def missing(path: str) -> FileState:
    """The state of a path at which nothing stands."""
    return FileState(path=path, kind=FileKind.MISSING)


def digest_of(read: Callable[[int], bytes], size: int) -> tuple[str, bytes | None]:
    """Hash of at most ``HASHED_BYTES`` (the size stands in for the rest), and the content if it is small."""
    hashed, kept, left = hashlib.sha256(), b"", HASHED_BYTES
    while left and (chunk := read(min(left, AT_ONCE))):
        hashed.update(chunk)
        left -= len(chunk)
        if len(kept) <= CONTENT_BYTES:
            kept += chunk
    digest = hashed.hexdigest() if left else f"{hashed.hexdigest()}+{size}"
    return digest, kept if len(kept) <= CONTENT_BYTES else None


# ---- the host's way ----


class _LayerFolders:
    """The folders of one layer, each opened once and none through a link; ``top`` is the layer's own. To be closed."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._known: dict[str, tuple[int | None, bool]] = {}

    def at(self, path: str) -> tuple[int | None, bool]:
        """The open folder at a path ("" is the layer's own), None without one; whether it hides all below this layer.

        Raises OSError where the host can't tell.
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
            _raise_if_ours(error)
            return None, True  # a file, link or whiteout of that name
        return inner, hides or _xattr(inner, OPAQUE) == b"y"

    def close(self) -> None:
        """Forget all folders: what is asked for next is looked up anew."""
        for folder, _ in self._known.values():
            if folder is not None:
                os.close(folder)
        self._known.clear()


class _SkipVanished:
    """Around what is looked at after it was listed: what goes away in between is not there.

    ``trouble``: the host couldn't look. A walk goes on all the same: it opens a file a level, and an agent that made
    many levels could turn its trial into an error.
    """

    trouble = False

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        self.trouble = self.trouble or error.errno in HOSTS_TROUBLE
        return True


_Entry = tuple[str, str, int, os.stat_result]  # path, name, folder, and what stands there


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
        if stat.S_ISDIR(found.st_mode) and depth < DEPTH:
            inner = _opened(name, folder)
            try:
                yield from _walk_in(inner, f"{inside}/{name}", depth + 1, vanishing)
            finally:
                os.close(inner)


@dataclass(frozen=True)
class _Walked:
    """What a walk found: the files, the names in the uppermost folder, and when each folder had been written to.

    ``changed`` are the paths of all that is no folder.
    """

    files: tuple[FileState, ...]
    changed: tuple[str, ...]
    tops: frozenset[str]
    folders: dict[str, tuple[int, ...]]

    def has_any(self, paths: tuple[str, ...]) -> bool:
        """Whether the layer may have anything to say of one of these paths."""
        return not self.tops.isdisjoint([path.split("/", 2)[1] for path in paths])

    def holds(self, top: int) -> bool:
        """Whether no folder has been written to since: what there is is written nowhere else."""
        try:
            for path, then in self.folders.items():
                if _written(_stat_of(path, top)) != then:
                    return False
        except OSError:
            return False
        return True


@dataclass
class OverlayReader:
    """Reads an overlay's layers on the host, the container's own (``upper``) before the image's (``lowers``).

    The container's own is kept open, for its path is a long one. To be closed.
    """

    upper: Path
    lowers: tuple[str, ...]
    guarantee: str = "layers"
    content_only: bool = False  # a file too large to keep is not read at all, and has no hash
    _below: dict[str, FileState] = field(default_factory=dict, compare=False, repr=False)
    _walked: _Walked | None = field(default=None, compare=False, repr=False)
    _top: int | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, graph_driver: dict[str, object]) -> OverlayReader | None:
        """The look for what ``docker inspect`` says of a container, or None where this host can't read it."""
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

    def _own(self) -> int:
        """The container's own layer, open. Raises OSError."""
        if self._top is None:
            self._top = _opened(self.upper)
        return self._top

    def close(self) -> None:
        """Let the layer go."""
        if self._top is not None:
            os.close(self._top)
            self._top = None

    def snapshot(self, paths: Iterable[str]) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """The state of each path, and every regular file in the container's own layer, by identity, its content unread.

        Raises OSError where the host can't tell.
        """
        paths, walked = tuple(paths), self._walked
        if walked and not walked.has_any(paths) and walked.holds(self._own()):
            self._look_below(paths)
            return tuple(self._below[path] for path in paths), walked.files
        return self.states(paths), self._found().files  # in this order: what goes away in between is found elsewhere

    def untouched(self, path: str) -> bool:
        """Whether nothing of a path was ever written, for all that the uppermost folder's name tells. Raises OSError.

        What is written to a file, through whatever name or mapping, is written to a copy in the container's own layer.
        """
        try:
            os.stat(path.split("/", 2)[1], dir_fd=self._own(), follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def states(self, paths: Iterable[str]) -> tuple[FileState, ...]:
        """The state of each path, as the container sees it. Raises OSError where the host can't tell."""
        paths = tuple(paths)
        self._look_below(paths)
        with closing(_LayerFolders(self._own())) as folders:
            return tuple(self._state(folders, path) for path in paths)

    def _state(self, folders: _LayerFolders, path: str) -> FileState:
        """The state of a path; one that is another thing between two system calls is looked at again."""
        for _ in range(ATTEMPTS):
            try:
                # The container's own layer has the first word, and mostly has none.
                return _state_in(folders, path, content_only=self.content_only, fixed=False) or self._below[path]
            except OSError as error:
                _raise_if_ours(error)
                folders.close()
        return missing(path)

    def _look_below(self, paths: tuple[str, ...]) -> None:
        """Look at what there is below the container's own layer: nobody can write there, so it is looked up once.

        The uppermost of the other layers is made for this container; those below are an image's, and many have them.
        """
        if not (unknown := [path for path in paths if path not in self._below]):
            return
        (made, *others), only = self.lowers, self.content_only
        image = ":".join(others)
        with _layer(made) as top, closing(_LayerFolders(top)) as folders:
            for path in unknown:
                state = _state_in(folders, path, content_only=only, fixed=True) or _image_state(image, path, only)
                self._below[path] = state or missing(path)

    def _walk(self, vanishing: _SkipVanished) -> Iterator[_Entry]:
        """What the container's own layer holds, bounded in number and depth."""
        folder = _opened(".", self._own())
        try:
            yield from islice(_walk_in(folder, "", 0, vanishing), LISTED_PATHS)
        finally:
            os.close(folder)

    def changed_paths(self) -> tuple[str, ...]:
        """What the container's own layer holds, whiteouts included."""
        return self._found().changed

    def _found(self) -> _Walked:
        """What the container's own layer holds: of a walk before, where nothing was written since."""
        if self._walked and self._walked.holds(self._own()):
            return self._walked
        began, count, files, changed, tops, vanishing = time.time_ns(), 0, [], [], set(), _SkipVanished()
        if not (top := os.stat(self._own())).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "somebody removed the container's own layer", str(self.upper))
        folders = {"": _written(top)}
        for path, name, folder, found in self._walk(vanishing):
            count += 1
            tops.add(path.split("/", 2)[1])
            if stat.S_ISDIR(found.st_mode):
                folders[path] = _written(found)
                continue
            changed.append(as_text(path))
            if stat.S_ISREG(found.st_mode):
                identity = _identity_at(name, folder, found)
                files.append(FileState(path=changed[-1], kind=FileKind.FILE, identity=identity))
        # What is written to a folder twice within one tick of the kernel's clock may have one time only.
        settled = all(max(times) < began - SETTLED_NS for _, *times in folders.values())
        whole = count < LISTED_PATHS and not vanishing.trouble
        walked = _Walked(tuple(files), tuple(sorted(changed)), frozenset(tops), folders)
        self._walked = walked if settled and whole and len(folders) <= FEW_FOLDERS else None
        return walked


def _readable(layer: str) -> bool:
    return os.access(layer, os.R_OK | os.X_OK)


@lru_cache(maxsize=100)  # many containers have the same
def _image_readable(*layers: str) -> bool:
    return all(map(_readable, layers))


@lru_cache(maxsize=1_000)
def _image_state(layers: str, path: str, content_only: bool) -> FileState | None:
    """What an image has at a path: no container can write to it, so it is looked up once. Raises OSError.

    ``layers`` are as overlayfs has them, the uppermost first: that which says anything of the path has the word.
    """
    for layer in filter(None, layers.split(":")):
        with _layer(layer) as top, closing(_LayerFolders(top)) as folders:
            if state := _state_in(folders, path, content_only=content_only, fixed=True):
                return state
    return None


def _state_in(folders: _LayerFolders, path: str, *, content_only: bool, fixed: bool) -> FileState | None:
    """The state of a path in one layer, or None where it leaves it to those below. Raises OSError."""
    above, _, name = path.strip("/").rpartition("/")
    folder, hides = folders.at(above)
    nothing = missing(path) if hides else None
    if folder is None:
        return nothing
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return nothing
    if _is_whiteout(found):
        return missing(path)
    return _file_state(path, name, folder, found, content_only=content_only, fixed=fixed)


@contextmanager
def _layer(path: str) -> Iterator[int]:
    """A layer that is looked into once, open."""
    top = _opened(path)
    try:
        yield top
    finally:
        os.close(top)


def _stat_of(path: str, top: int) -> os.stat_result:
    """What stands at a path of a layer ("" is its own folder)."""
    return os.stat(path[1:], dir_fd=top, follow_symlinks=False) if path else os.stat(top)


def _written(folder: os.stat_result) -> tuple[int, ...]:
    """Which folder this is, and when it was written to last."""
    return folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns


def _opened(folder: str | Path, above: int | None = None) -> int:
    """A folder to look into, not reached through a link of that name."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)


def _raise_if_ours(error: OSError) -> None:
    """Raise what is the host's trouble, which must not be taken for something that the container did."""
    if error.errno in HOSTS_TROUBLE:
        raise error


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


def _file_state(
    path: str, name: str, folder: int, found: os.stat_result, *, content_only: bool, fixed: bool
) -> FileState:
    """The state of what ``found`` is of. Raises OSError where it is another thing by now."""
    digest = content = target = identity = None
    if stat.S_ISREG(found.st_mode):
        fd = _file(name, folder)
        try:
            found = os.fstat(fd)  # of the very file that is read
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
    """The state of what has no content, as most folders have it at every look."""
    return FileState(path=path, kind=kind, mode=stat.S_IMODE(mode), uid=uid, gid=gid)


def _file(name: str, folder: int) -> int:
    """Open what stands under a name: without blocking, for what was a file may be a pipe by now. Raises OSError."""
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
    """What names this file whatever it is called.

    A file of the image keeps its handle: the overlay copies it up on the first write or rename and notes the
    original's handle on the copy. See "overlay.origin" in the kernel's fs/overlayfs/copy_up.c, struct ovl_fb.
    """
    origin = _xattr(fd, ORIGIN)
    if origin and len(origin) > 21:
        return f"{origin[4]}:{origin[21:].hex()}"
    handle = _handle(fd) if origin is None else None
    return handle or f"inode:{found.st_ino}"


_libc = ctypes.CDLL(None, use_errno=True)
_HANDLE = struct.Struct("=Ii128s")  # its size, its type, and room for it: struct file_handle, name_to_handle_at(2)
_OF_THE_FD = 0x1000  # AT_EMPTY_PATH


def _handle(fd: int) -> str | None:
    """The kernel's handle of an open file as "type:hex", or None where the filesystem has none."""
    buffer = ctypes.create_string_buffer(_HANDLE.pack(_HANDLE.size - 8, 0, b""), _HANDLE.size)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _OF_THE_FD) != 0:
        return None
    size, kind, handle = _HANDLE.unpack(buffer.raw)
    return f"{kind}:{handle[:size].hex()}"
