"""Finds the overlay layers of a container's root file system in the kernel's list of mounts, /proc/PID/mountinfo.

The kernel lists the layers of every overlay mount. A container engine reports the layers for one storage driver only,
and newer engines don't report them at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.sandbox.observe.procfs import text_of

_AT_ROOT = re.compile(r"\S+ \S+ \S+ \S+ / ")  # the fifth field is the mount point
_OCTAL = re.compile(r"\\([0-7]{3})")
_LOWER = ("lowerdir", "lowerdir+")  # one option with all layers, or one option for each layer


@dataclass(frozen=True, slots=True)
class Layers:
    """The folders of an overlay mount's layers.

    ``upper`` is the folder of the writable layer. ``lowers`` are the folders of the layers below it, with the top layer
    first.
    """

    upper: str
    lowers: tuple[str, ...]


def root_layers(mountinfo: str) -> Layers | None:
    """Return the layers of the mount at ``/``, or None if this mount isn't a writable overlay.

    ``mountinfo`` is the content of /proc/PID/mountinfo. The paths of the lower layers may be relative to a folder that
    ``mountinfo`` doesn't name.
    """
    found = None
    for line in mountinfo.splitlines():
        if _AT_ROOT.match(line):  # a later mount covers an earlier one
            kind, _, rest = line.partition(" - ")[2].partition(" ")
            found = _layers(rest.partition(" ")[2]) if kind == "overlay" else None
    return found


def _layers(options: str) -> Layers | None:
    """Return the layers in the options of an overlay mount, such as ``rw,lowerdir=/a:/b,upperdir=/c,workdir=/d``.

    Returns None if the options name no writable layer or no lower layer.
    """
    upper, lowers = "", list[str]()
    for option in options.split(","):  # a comma in a path is escaped
        name, _, value = option.partition("=")
        path = _OCTAL.sub(lambda found: chr(int(found[1], 8)), value) if "\\" in value else value
        if name == "upperdir":
            upper = path
        elif name == "lowerdir":
            lowers += _split(path.partition("::")[0])  # what follows a double colon holds content without names
        elif name == "lowerdir+":
            lowers.append(path)
    return Layers(upper, tuple(lowers)) if upper and lowers else None


def _split(value: str) -> list[str]:
    """Split a list of folders at its colons. In a folder's name, a backslash escapes the next character."""
    return [re.sub(r"\\(.)", r"\1", each) for each in re.findall(r"(?:\\.|[^:\\])+", value)]


def resolved(layers: Layers, is_folder: Callable[[str], bool] = os.path.isdir) -> Layers | None:
    """Return the layers with absolute paths, or None if a lower layer can't be found.

    Symbolic links in the paths of the lower layers are resolved. If a container has many layers, the engine names the
    lower ones by relative paths, such as ``l/ABC`` or ``1967/fs``. These paths start at one of the folders above the
    writable layer. ``is_folder`` is a function that returns whether a path is a folder.
    """
    above = [""] if all(map(os.path.isabs, layers.lowers)) else [str(each) for each in Path(layers.upper).parents]
    for folder in above:
        with suppress(NotADirectoryError):
            return Layers(layers.upper, tuple(_real(folder, each, is_folder) for each in layers.lowers))
    return None


@lru_cache(maxsize=1_000)  # the layers of an image are those of many containers
def _real(above: str, path: str, is_folder: Callable[[str], bool]) -> str:
    """Return the absolute path of the folder ``path`` without symbolic links. A relative path starts at ``above``.

    Raises NotADirectoryError if there is no folder at the path.
    """
    joined = os.path.join(above, path)
    if not is_folder(joined):
        raise NotADirectoryError(joined)
    return os.path.realpath(joined)


def container_layers(pid: int, container: str) -> Layers | None:
    """Return the layers of the container with the ID ``container``, whose first process is ``pid`` on this host.

    Returns None if the layers can't be found. For example, the process may belong to another container because the
    engine runs on another host, or the container's root file system may not be an overlay.
    """
    try:
        if container not in text_of(f"/proc/{pid}/cgroup"):
            return None
        found = root_layers(text_of(f"/proc/{pid}/mountinfo", records=True, errors="surrogateescape"))
    except OSError:
        return None
    return resolved(found) if found else None
