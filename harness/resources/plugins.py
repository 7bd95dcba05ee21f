"""Finds plugins, i.e. tasks, kill switches, images, players and exporters that the user adds to the lab.

A plugin folder is laid out like the lab's own repository: ``tasks/NAME/task.py``, ``shutdown_scripts/NAME/``,
``sandbox_images/NAME/``, ``players/NAME.py``, ``exporters/NAME.py``. An installed package can offer plugins through the
entry points ``offswitch.tasks``, ``offswitch.mechanisms``, ``offswitch.players`` and ``offswitch.exporters`` instead. A
task, kill switch or image can also be given by its own path, for example with ``--task PATH``. Python plugins run with
the rights of the lab's user, like any other program that the user installs.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from harness.errors import LabError, UsageError
from harness.resources.data import ROOT, names_in, own_or_shipped

VARIABLE = "OFFSWITCH_PLUGINS"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of plugin that is a folder, such as a task. Each such folder contains a file with the name ``marker``.

    ``noun`` names the kind in messages, such as "task". The plugins are the subfolders of ``folder`` in each plugin
    folder. ``group`` is the last part of the kind's entry-point group, or None if plugins of this kind can't be offered
    through entry points.
    """

    noun: str
    folder: str
    marker: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin, or a task, kill switch or image that ships with the lab.

    ``path`` is its file or folder. ``entry_point`` is the entry point if an installed package offers the plugin, or
    None otherwise. ``shipped`` is true if it ships with the lab.
    """

    name: str
    path: Path
    entry_point: EntryPoint | None = None
    shipped: bool = False

    @property
    def sha256(self) -> str:
        """A hash of the plugin's file, or of the names and contents of all files in its folder."""
        return sha256_of_tree(self.path)


_folders: list[Path] = []
_given: list[tuple[str, Path]] = []  # the noun of a kind, and a folder that the user gave by its own path
_forget: list[Callable[[], None]] = []  # empty the caches of what was found


def cached(find: Callable[P, T]) -> Callable[P, T]:
    """Cache the results of ``find``, which depend on the plugin folders. The function ``forget`` empties the cache."""
    remembered = cache(find)
    _forget.append(remembered.cache_clear)
    return remembered  # type: ignore[return-value] # typeshed types a cached function without its parameters


def use_folders(folders: Sequence[Path]) -> None:
    """From now on, search for plugins in ``folders`` and in the folders that the variable OFFSWITCH_PLUGINS lists.

    Earlier folders are no longer searched. Raises UsageError if one of these paths isn't a folder.
    """
    named = [Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    searched = [own_or_shipped(folder) for folder in (*folders, *named)]
    for folder in searched:
        if not folder.is_dir():
            raise UsageError(f"There is no plugin folder {folder}: check --plugins and {VARIABLE}.")
    _folders[:] = dict.fromkeys(folder.resolve() for folder in searched)
    forget()


def add_folders(more: Sequence[Path]) -> None:
    """From now on, search for plugins in the folders ``more`` too, after the folders that are already searched.

    Raises UsageError if one of these paths isn't a folder.
    """
    if any(each.resolve() not in _folders for each in more):
        use_folders([*_folders, *more])


def forget() -> None:
    """Empty all caches of plugins, so that the plugins are searched again when they are needed."""
    for each in _forget:
        each()


def folders() -> tuple[Path, ...]:
    """Return the plugin folders that are searched, as absolute paths."""
    return tuple(_folders)


# ---- what is there ----


def found(kind: FolderKind, shipped_marker: str | None = None) -> dict[str, Plugin]:
    """Return everything of one kind, such as all tasks, by name: what ships with the lab, and the plugins.

    ``shipped_marker`` is the name of the file that each shipped folder contains, or None if that name is
    ``kind.marker``. Raises UsageError if a name isn't unique.
    """
    names = names_in(kind.folder, shipped_marker or kind.marker)
    shipped = [Plugin(name, ROOT / kind.folder / name, shipped=True) for name in names]
    offered = installed(kind.group) if kind.group else ()
    return by_name(kind.noun, (*shipped, *_subfolders(kind), *offered))


def by_name(noun: str, plugins: Iterable[Plugin]) -> dict[str, Plugin]:
    """Return ``plugins``, which are of one kind, keyed by name. ``noun`` is the kind's name in the error message.

    Raises UsageError if two different plugins have the same name, ignoring letter case. The same plugin may occur
    twice.
    """
    known: dict[str, Plugin] = {}
    for plugin in plugins:
        other = known.setdefault(plugin.name.lower(), plugin)
        if (other.path.resolve(), other.entry_point) != (plugin.path.resolve(), plugin.entry_point):
            raise UsageError(
                f"There are two {noun}s named '{plugin.name}', {other.path} and {plugin.path}: rename one."
            )
    return {plugin.name: plugin for plugin in known.values()}


def _subfolders(kind: FolderKind) -> Iterator[Plugin]:
    """Yield the plugins of one kind in the plugin folders, and those that the user gave by their own path."""
    for folder in _folders:
        for file in sorted((folder / kind.folder).glob(f"*/{kind.marker}")):
            yield Plugin(file.parent.name, file.parent)
    for noun, folder in _given:
        if noun == kind.noun:
            yield Plugin(folder.name, folder)


def modules(kind: str) -> Iterator[Plugin]:
    """Yield the plugins that are Python files named ``kind``/NAME.py in a plugin folder."""
    for folder in _folders:
        for file in sorted((folder / kind).glob("[!_]*.py")):
            yield Plugin(file.stem, file)


def installed(group: str) -> Iterator[Plugin]:
    """Yield the plugins that installed packages offer as entry points, for example in the group ``offswitch.tasks``.

    ``group`` is the part of the group's name after the dot.
    """
    for each in entry_points(group=f"offswitch.{group}"):
        module = sys.modules.get(each.module)
        file = getattr(module, "__file__", None) or _module_file(each)
        yield Plugin(each.name, Path(file), each)


def _module_file(point: EntryPoint) -> str:
    with guarded(f"The plugin '{point.name}' of an installed package can't be imported"):
        spec = find_spec(point.module)  # imports the parent packages
        if spec is None or spec.origin is None:
            raise ImportError(f"there is no module {point.module}")
        return spec.origin


# ---- plugins that are given by their own path ----


def name_given(kind: FolderKind, value: str, known: Iterable[str], base: Path) -> str:
    """Return the name of a plugin that the user gave by name or by path.

    A path leads to the plugin's folder or to the main file in it, and a relative path starts at ``base``. Once a plugin
    was given by path, it can be found by its name too. If ``value`` contains no slash and is one of the ``known``
    names, it is never read as a path. Raises UsageError if ``value`` contains a slash and leads to no plugin of this
    kind.
    """
    if "/" not in value and value.lower() in {name.lower() for name in known}:
        return value
    path = (base / Path(value).expanduser()).resolve()
    folder = path.parent if path.name == kind.marker else path
    if value and (folder / kind.marker).is_file():
        if (kind.noun, folder) not in _given:
            _given.append((kind.noun, folder))
            forget()
        return folder.name
    if "/" in value:
        raise UsageError(f"There is no {kind.noun} at {value}: name a folder with a {kind.marker} in it.")
    return value


def path_given(kind: FolderKind, name: str) -> Path | None:
    """Return the folder of the plugin called ``name`` if the user gave its path, or None otherwise."""
    return next((folder for noun, folder in _given if (noun, folder.name) == (kind.noun, name)), None)


# ---- loading ----


@contextmanager
def guarded(problem: str) -> Iterator[None]:
    """Convert an exception of a plugin's code in the ``with`` block to a UsageError that begins with ``problem``.

    A LabError is raised unchanged.
    """
    try:
        yield
    except LabError:
        raise
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        said = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"{problem}: {type(error).__name__}{': ' if said else ''}{said}.") from error


def load(plugin: Plugin, attribute: str, file: str = "") -> Any:
    """Import a plugin and return the object that it defines as ``attribute``, or the object of its entry point.

    ``file`` is the name of the Python file to import if the plugin is a folder, and empty otherwise. Raises UsageError
    if the plugin can't be imported or defines no such object.
    """
    source = plugin.path / file
    with guarded(f"The plugin {source} can't be imported"):
        if plugin.entry_point:
            return plugin.entry_point.load()
        module = _imported(source)
    if not hasattr(module, attribute):
        raise UsageError(f"The plugin {source} defines no {attribute}: see docs/plugins.md.")
    return getattr(module, attribute)


def objects(kind: str, attribute: str, of: type[T], what: str) -> Iterator[tuple[Plugin, T]]:
    """Yield the plugins that are Python files or entry points of one kind, each with the object that it defines.

    ``attribute`` is the name of the object and ``of`` its class, which ``what`` names in the error message with its
    article. Raises UsageError if a plugin can't be imported or its object is of another class.
    """
    for plugin in (*modules(kind), *installed(kind)):
        found = load(plugin, attribute)
        if not isinstance(found, of):
            raise UsageError(f"{attribute} in the plugin {plugin.path} isn't {what}: see docs/plugins.md.")
        yield plugin, found


@cache
def _imported(file: Path) -> Any:
    """Import a Python file under a unique module name. A file is imported only once in each process."""
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
    """Return a SHA-256 hash of a file, or of the names and contents of all files in a folder.

    Raises UsageError if a file can't be read.
    """
    hashed = hashlib.sha256()
    with guarded(f"The plugin {path} can't be read"):
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        for file in files:
            if "__pycache__" not in file.parts:
                name = file.relative_to(path.parent).as_posix().encode()
                content = file.read_bytes()
                hashed.update(b"%d %b %d " % (len(name), name, len(content)) + content)
    return hashed.hexdigest()
