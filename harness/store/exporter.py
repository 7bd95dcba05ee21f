"""Defines exporters. Each exporter writes stored runs to a file in one format, for use by other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import TemporaryDirectory

from harness.errors import UsageError
from harness.resources import plugins
from harness.resources.data import pick
from harness.resources.plugins import Plugin
from harness.store import exporters
from harness.store.records import TrialRecord
from harness.store.store import Store, StoredRun


@dataclass(frozen=True, slots=True)
class Exporter:
    """A file format that stored runs can be written in.

    ``name`` selects the exporter on the command line, and ``about`` describes the file in --help. ``suffix`` is the end
    of the file's name, such as ".csv".

    ``write`` is called with the runs and the path of a file that doesn't exist yet. Each run comes with the records of
    its finished trials, ordered by trial number. The records are read from the store while they are iterated over, so
    ``write`` must iterate over the records of one run before it gets the next run.
    """

    name: str
    about: str
    suffix: str
    write: Callable[[Iterable[tuple[StoredRun, Iterator[TrialRecord]]], Path], None]


@plugins.cached
def all_exporters() -> dict[str, Exporter]:
    """Return all exporters by name, plugins included.

    Raises UsageError if a plugin can't be used, or if two exporters have the same name.
    """
    modules = (import_module(f"{exporters.__name__}.{each.name}") for each in iter_modules(exporters.__path__))
    found: dict[str, Exporter] = {module.EXPORTER.name: module.EXPORTER for module in modules}
    for plugin, exporter in _of_plugins():
        if exporter.name in found:
            raise UsageError(f"The plugin {plugin.path} defines the exporter '{exporter.name}': there is one already.")
        found[exporter.name] = exporter
    return found


def _of_plugins() -> Iterator[tuple[Plugin, Exporter]]:
    return plugins.objects("exporters", "EXPORTER", Exporter, "an Exporter")


def origin_of(exporter: Exporter) -> str:
    """Return an exporter's name as text. For a plugin, the text also contains the hash of the plugin's file."""
    hashes = [plugin.sha256 for plugin, each in _of_plugins() if each is exporter]
    return f"{exporter.name} (plugin, sha256 {hashes[0][:12]})" if hashes else exporter.name


def exporter_named(name: str) -> Exporter:
    """Return the exporter with this name. Raises UsageError if there is none."""
    known = all_exporters()
    return known[pick("exporter", name, known)]


def export(store: Store, runs: Sequence[StoredRun], exporter: Exporter, out: Path) -> None:
    """Write stored runs to the file ``out``, which is replaced if it exists.

    ``out`` is created or replaced only once all data have been written. Raises UsageError if the file can't be written
    or the exporter fails.
    """
    with plugins.guarded(f"The exporter '{exporter.name}' failed and {out} was not written"):
        try:
            target = out.resolve()  # a link stays a link
            target.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".offswitch-export-", dir=target.parent) as folder:
                unfinished = Path(folder, target.name)
                exporter.write(((run, store.trials(run.spec.run_id)) for run in runs), unfinished)
                unfinished.replace(target)
        except OSError as error:
            raise UsageError(f"{out} can't be written: {error.strerror or error}.") from error
