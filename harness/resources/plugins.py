"""Finds plugins: tasks, kill switches, images, players and exporters of the user's own, outside the package.

A plugin folder is laid out like the lab's own repository: ``tasks/NAME/task.py``, ``shutdown_scripts/NAME/``,
``sandbox_images/NAME/``, ``players/NAME.py``, ``exporters/NAME.py``. An installed package can offer plugins through the
entry points ``offswitch.tasks``, ``offswitch.mechanisms``, ``offswitch.players`` and ``offswitch.exporters`` instead.
Python plugins run with the rights of the lab's user, like any other program that the user installs.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from harness.errors import UsageError

VARIABLE = "OFFSWITCH_PLUGINS"

_folders: list[Path] = []


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin. ``path`` is its file or folder. ``entry_point`` is None if it was found in a plugin folder."""

    name: str
    path: Path
    entry_point: EntryPoint | None = None

    @property
    def sha256(self) -> str:
        """A hash of the plugin's file, or of the names and contents of all files in its folder."""
        return sha256_of_tree(self.path)


def use_folders(folders: Sequence[Path]) -> None:
    """Search these plugin folders, and those in the environment variable OFFSWITCH_PLUGINS, from now on.

    Raises UsageError if one of them is not a folder.
    """
    named = [Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    for folder in (*folders, *named):
        if not folder.is_dir():
            raise UsageError(f"There is no plugin folder {folder}: check --plugins and {VARIABLE}.")
    _folders[:] = dict.fromkeys(folder.absolute() for folder in (*folders, *named))


def folders() -> tuple[Path, ...]:
    """Return the plugin folders that are searched, as absolute paths."""
    return tuple(_folders)


def subfolders(kind: str, marker: str) -> Iterator[Plugin]:
    """Yield the plugins that are folders named ``kind``/NAME with a file named ``marker`` in them."""
    for folder in _folders:
        for file in sorted((folder / kind).glob(f"*/{marker}")):
            yield Plugin(file.parent.name, file.parent)


def modules(kind: str) -> Iterator[Plugin]:
    """Yield the plugins that are Python files named ``kind``/NAME.py."""
    for folder in _folders:
        for file in sorted((folder / kind).glob("[!_]*.py")):
            yield Plugin(file.stem, file)


def installed(kind: str) -> Iterator[Plugin]:
    """Yield the plugins that installed packages offer as entry points of the group ``offswitch.KIND``."""
    for each in entry_points(group=f"offswitch.{kind}"):
        module = sys.modules.get(each.module)
        file = getattr(module, "__file__", None) or _module_file(each)
        yield Plugin(each.name, Path(file), each)


def _module_file(point: EntryPoint) -> str:
    from importlib.util import find_spec  # noqa: PLC0415 - imports the parent packages, so only for installed plugins

    found = find_spec(point.module)
    if found is None or found.origin is None:
        raise UsageError(f"The plugin '{point.name}' can't be imported: there is no module {point.module}.")
    return found.origin


def load(plugin: Plugin, attribute: str, file: str = "") -> Any:
    """Import a plugin and return the object that it defines as ``attribute``.

    ``file`` is the Python file in the folder of a plugin that is a folder. Raises UsageError if the plugin can't be
    imported or defines no such object.
    """
    try:
        if plugin.entry_point:
            return plugin.entry_point.load()
        module = _imported(plugin.path / file if file else plugin.path)
    except UsageError:
        raise
    except Exception as error:  # a plugin may raise anything while it is imported
        raise UsageError(f"The plugin {plugin.path} can't be imported: {type(error).__name__}: {error}.") from error
    if not hasattr(module, attribute):
        raise UsageError(f"The plugin {plugin.path} defines no {attribute}: see docs/plugins.md.")
    return getattr(module, attribute)


@cache
def _imported(file: Path) -> Any:
    """Import a Python file under a module name of its own, once for each process."""
    name = f"offswitch_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def sha256_of_tree(path: Path) -> str:
    """Return a SHA-256 hash of a file, or of the names and contents of all files in a folder."""
    hashed = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        if "__pycache__" not in file.parts:
            name = file.relative_to(path.parent).as_posix().encode()
            content = file.read_bytes()
            hashed.update(b"%d %b %d " % (len(name), name, len(content)) + content)
    return hashed.hexdigest()
