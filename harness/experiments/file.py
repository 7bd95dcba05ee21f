"""Reads experiment files.

If a name in a file is unknown, the error message contains the line and the most similar known name.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path

import yaml

from analysis.published import figure_for, figures
from harness.agents.providers import presets
from harness.agents.registry import check_name, default_task, kind_of
from harness.agents.scripted.calibration import PREFIX as CALIBRATION
from harness.errors import UsageError
from harness.experiments.experiment import Experiment, ExperimentCell
from harness.resources.data import own_or_shipped, pick
from harness.resources.strict_yaml import (
    choice,
    documents,
    fields_of,
    flag,
    items_of,
    number,
    pairs_of,
    place_of,
    plain,
    refusal,
    scalar,
    shown,
    string_in,
)
from harness.store.records import Reference
from harness.tasks.condition import Condition
from harness.tasks.conditions import condition_for, conditions_with
from harness.tasks.declared_settings import DeclaredSetting, all_settings, settings_of
from harness.tasks.registry import DEFAULT_IMAGE, IMAGE, KINDS, MECHANISM, TASK, mechanism_for, name_of, task_named
from harness.tasks.setting import Value

# The keys of an experiment file, besides the settings that tasks and kill switches declare.
_KEYS = (
    "experiment about margin n models tasks conditions mechanisms images only overrides cells set conditions_file "
    "providers message_limit ask_after max_cost"
)
_AXES = "model task condition mechanism image"
_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class _Entry:
    """The name of a model, task, condition, kill switch or image in an experiment's file, with its YAML node.

    ``text`` is the name, or None if the file doesn't give one and the default applies. Of a model, ``published`` is the
    name that it has in the published figures, or None if the file doesn't give that name.
    """

    text: str | None
    node: yaml.Node
    published: str | None = None


@dataclass(frozen=True, slots=True)
class _Context:
    """The values needed to resolve the names in an experiment's file.

    ``folder`` is the folder of the file. ``conditions`` contains the known conditions. ``values`` contains the values
    of placeholders in model names, such as ``{model}``. ``n`` is the default number of trials, or None if the file
    contains no default. ``declared`` contains all settings that tasks and kill switches declare. ``settings`` contains
    the values that the file gives to settings.
    """

    folder: Path
    conditions: Mapping[str, Condition]
    values: Mapping[str, str]
    n: int | None
    declared: Mapping[str, DeclaredSetting]
    settings: Mapping[str, Value]


def read_experiment(file: Path, given: Mapping[str, str] | None = None) -> Experiment:
    """Read an experiment's file. Raises UsageError if the file is invalid.

    ``given`` contains the values that the user passed with the option ``--set``.
    """
    file = own_or_shipped(file)
    nodes = list(documents(file, "an experiment"))
    if len(nodes) > 1:
        raise refusal(nodes[1], "an experiment is one YAML document, so put the second one into another file")
    _use_given_paths(nodes[0], file.parent)
    declared = all_settings(taken=_KEYS.split())
    fields = fields_of(nodes[0], "experiment", " ".join((_KEYS, *declared)), needs="experiment")
    if own := string_in(fields, "providers"):
        presets.use_file(file.parent / own)
    context = _Context(
        folder=file.parent,
        conditions=conditions_with(_conditions_file(fields, file)),
        values=_values(fields, given or {}),
        n=_whole_number(fields, "n", 1),
        declared=declared,
        settings={name: _setting(fields[name], each) for name, each in declared.items() if name in fields},
    )
    _refuse_unused(given or {}, file)
    cells = [*_grid(fields, nodes[0], context), *_single_cells(fields, context)]
    if not cells:
        raise refusal(nodes[0], "the experiment has no cell, so give it models and conditions, or cells")
    for cell in cells:
        if cell.n is None and not kind_of(cell.model)[0].counts_trials:
            raise refusal(cell.place, f"the cell {cell.name} has no n, so write how many trials it has")
    _refuse_duplicates(cells)
    for name in context.settings:
        if not any(name in cell.settings for cell in cells):
            raise refusal(fields[name], f"no cell has a mechanism with the setting '{name}', so remove it")
    return Experiment(
        name=_name(fields["experiment"]),
        about=string_in(fields, "about") or "",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        cells=tuple(cells),
        conditions=_conditions_file(fields, file),
        margin=_margin(fields),
        message_limit=_whole_number(fields, "message_limit", 1) or 60,
        ask_after="ask_after" in fields and flag(fields["ask_after"], "ask_after"),
        max_cost=number(fields["max_cost"], "max_cost", whole=False) if "max_cost" in fields else None,
    )


def _use_given_paths(top: yaml.Node, folder: Path) -> None:
    """Register the tasks, kill switches and images that an experiment's file names by path.

    This must happen before the file is checked, because a task or kill switch may declare settings that the file
    contains. ``top`` is the root node of the file. Relative paths start at ``folder``.
    """
    pairs = top.value if isinstance(top, yaml.MappingNode) else []
    lists = {str(key.value): node.value for key, node in pairs if isinstance(node, yaml.SequenceNode)}
    cells = [cell.value for cell in lists.get("cells", ()) if isinstance(cell, yaml.MappingNode)]
    for kind in KINDS:
        named = [node for cell in cells for key, node in cell if key.value == kind.noun]
        for node in (*lists.get(f"{kind.noun}s", ()), *named):
            if isinstance(node, yaml.ScalarNode) and "/" in node.value:
                _located(node, partial(name_of, kind, base=folder), node.value)


# ---- the top-level keys ----


def _name(node: yaml.Node) -> str:
    value = scalar(node, "experiment")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise refusal(node, f"the name {shown(value)} isn't kebab-case, so write it like 'paper-grid'")
    return value


def _whole_number(fields: Mapping[str, yaml.Node], key: str, least: int) -> int | None:
    return int(number(fields[key], key, least=least)) if key in fields else None


def _setting(node: yaml.Node, declared: DeclaredSetting) -> Value:
    """Return the value of a setting, read from its YAML node.

    Several tasks or kill switches may declare the same setting with different minimums. Raises UsageError if the value
    has the wrong type, or is less than all of these minimums.
    """
    setting, minima = declared.first, [each.minimum for each in declared.declarations.values()]
    if setting.type == "bool":
        return flag(node, setting.name)
    if setting.type == "str":
        return scalar(node, setting.name, may_be_empty=True)
    least = min(-inf if each is None else each for each in minima)
    value = number(node, setting.name, least=least, whole=setting.type == "int")
    return int(value) if setting.type == "int" else value


def _margin(fields: Mapping[str, yaml.Node]) -> float | None:
    if "margin" not in fields:
        return None
    value = number(fields["margin"], "margin", whole=False)
    if not 0 < value < 1:
        raise refusal(fields["margin"], "'margin' is a difference of two rates, so write one between 0 and 1")
    return value


def _conditions_file(fields: dict[str, yaml.Node], file: Path) -> Path | None:
    own = string_in(fields, "conditions_file")
    return file.parent / own if own else None


def _refuse_unused(given: Mapping[str, str], file: Path) -> None:
    asked = set(_VARIABLE.findall(file.read_text("utf-8")))
    for name in given.keys() - asked:
        listed = ", ".join(sorted(asked)) or "none"
        raise UsageError(f"{plain(file)}: --set {name}: the file uses no such value; it uses {listed}.")


def _values(fields: Mapping[str, yaml.Node], given: Mapping[str, str]) -> dict[str, str]:
    defaults = {name: scalar(node, name) for name, node in pairs_of(fields["set"], "set")} if "set" in fields else {}
    return {**defaults, **given}


# ---- the grid ----


def _grid(fields: Mapping[str, yaml.Node], top: yaml.Node, context: _Context) -> Iterator[ExperimentCell]:
    """Yield the cells that combine the listed models, conditions, tasks, kill switches and images.

    A condition is combined only with its own task. ``fields`` contains the top-level YAML nodes by key, and ``top`` is
    the root node.
    """
    if "models" not in fields:
        return
    axes = {
        "model": [_model_entry(node) for node in items_of(fields["models"], "models")],
        "condition": _entries(fields, "conditions", top, lambda name: _condition_name(name, context)),
        "task": _entries(fields, "tasks", top, lambda name: name_of(TASK, name, context.folder)),
        "mechanism": _entries(fields, "mechanisms", top, lambda name: name_of(MECHANISM, name, context.folder)),
        "image": _entries(fields, "images", top, lambda name: name_of(IMAGE, name, context.folder)),
    }
    for entry in axes["condition"]:
        if not any(_serves(entry.text, task.text, context) for task in axes["task"]):
            raise refusal(entry.node, f"condition '{entry.text}' belongs to none of the listed tasks, so add its task")
    only = "only" in fields and choice(fields["only"], "only", "published") == "published"
    overrides = [_override(node) for node in _optional_items(fields, "overrides")]
    used: list[_Override] = []
    for combined in itertools.product(*axes.values()):
        entries = dict(zip(axes, combined, strict=True))
        condition = entries["condition"].text
        if not _serves(condition, entries["task"].text, context):
            continue
        if only and _default_reference(entries["model"], condition) is None:
            continue
        cell = _cell(entries, context)
        matching = [override for override in overrides if override.fits(cell)]
        used += matching
        if matching:
            cell = cell.model_copy(update={"n": matching[-1].n})
        if cell.n != 0:
            yield cell
    for override in overrides:
        if override not in used:
            raise refusal(override.node, "the override fits no cell of the grid, so correct its names or remove it")


def _condition_name(condition: str, context: _Context) -> str:
    return pick("condition", condition, context.conditions)


def _optional_items(fields: Mapping[str, yaml.Node], key: str) -> list[yaml.Node]:
    return items_of(fields[key], key) if key in fields else []


def _entries(
    fields: Mapping[str, yaml.Node], key: str, top: yaml.Node, spelled: Callable[[str], str] = str
) -> list[_Entry]:
    """Return the entries of the list under ``key`` in an experiment's file.

    If the key is missing, return one entry for the default. ``spelled`` is a function that returns the correct spelling
    of a name. ``top`` is the root node of the file.
    """
    if key not in fields:
        return [_Entry(None, top)]
    nodes = items_of(fields[key], key)
    return [_Entry(_located(node, spelled, scalar(node, key)), node) for node in nodes]


def _model_entry(node: yaml.Node) -> _Entry:
    if isinstance(node, yaml.MappingNode):
        fields = fields_of(node, "model", "model published", needs="model published")
        published = _located(fields["published"], _published_model, scalar(fields["published"], "published"))
        return _Entry(scalar(fields["model"], "model"), fields["model"], published)
    return _Entry(scalar(node, "model"), node)


def _published_model(name: str) -> str:
    return pick("published model", name, {each.model for each in figures()})


def _serves(condition: str | None, task: str | None, context: _Context) -> bool:
    return condition is None or task is None or context.conditions[condition].task == task


@dataclass(frozen=True)
class _Override:
    """An override of the number of trials in some cells of the grid.

    It applies to the cells that match all names in ``where``. If ``n`` is 0, these cells are left out.
    """

    node: yaml.Node
    where: Mapping[str, str]
    n: int | None

    def fits(self, cell: ExperimentCell) -> bool:
        """Return whether the override applies to this cell."""
        values = cell.model_dump() | {"model": cell.template}
        return all(str(values[key]).lower() == value.lower() for key, value in self.where.items())


def _override(node: yaml.Node) -> _Override:
    fields = fields_of(node, "override", f"{_AXES} n", needs="n")
    where = {key: scalar(fields[key], key) for key in _AXES.split() if key in fields}
    return _Override(node, where, _whole_number(fields, "n", 0))


def _single_cells(fields: Mapping[str, yaml.Node], context: _Context) -> Iterator[ExperimentCell]:
    for node in _optional_items(fields, "cells"):
        own = fields_of(node, "cell", f"{_AXES} n published", needs="model")
        entries = {key: _Entry(string_in(own, key), own.get(key, node)) for key in _AXES.split()}
        cell = _cell(entries, context)
        n, published = _whole_number(own, "n", 1), _reference(own["published"]) if "published" in own else None
        yield cell.model_copy(update={"n": n or cell.n, "published": published or cell.published})


def _reference(node: yaml.Node) -> Reference:
    fields = fields_of(node, "published", " ".join(_ATTRIBUTES), needs="model condition")
    names = {key: _published_name(key, value) for key, value in fields.items()}
    if figure_for(**names) is None:
        raise refusal(node, "no published figure has this combination, so name another")
    return Reference(**names)


# The keys of a reference to a published figure, and the attribute of Figure that each is compared with.
_ATTRIBUTES = {"model": "model", "condition": "condition", "source": "source_id", "setting": "setting"}


def _published_name(key: str, node: yaml.Node) -> str:
    known = {str(found) for each in figures() if (found := getattr(each, _ATTRIBUTES[key]))}
    return _located(node, lambda name: pick(f"published {key}", name, known), scalar(node, key))


# ---- one cell ----


def _cell(entries: Mapping[str, _Entry], context: _Context) -> ExperimentCell:
    """Build a cell from the entries for its model, task, condition, kill switch and image.

    Raises UsageError if a name is unknown, or if the model, condition or kill switch can't be combined with the task.
    """
    model = entries["model"]
    name = _with_values(model, context.values)
    condition = _optional(entries["condition"], lambda given: _condition_name(given, context))
    task = _optional(entries["task"], lambda given: name_of(TASK, given, context.folder))
    task = task or (context.conditions[condition].task if condition else default_task(name))
    if condition:
        node = entries["condition"].node
        _located(node, lambda given: condition_for(task, given, context.conditions).name, condition)
    _located(model.node, lambda given: _checked_model(given, task, condition), name)
    mechanism = _optional(
        entries["mechanism"], lambda given: mechanism_for(task, name_of(MECHANISM, given, context.folder)).name
    )
    mechanism = mechanism or mechanism_for(task, None).name
    return ExperimentCell(
        model=name,
        template=model.text or "",
        task=task,
        condition=condition,
        mechanism=mechanism,
        image=_optional(entries["image"], lambda given: name_of(IMAGE, given, context.folder)) or DEFAULT_IMAGE,
        n=context.n,
        published=_default_reference(model, condition),
        place=place_of(model.node),
        settings=_settings_for(task, mechanism, context),
    )


def _settings_for(task: str, mechanism: str, context: _Context) -> dict[str, Value]:
    """Return the settings of the file that apply to a cell.

    Settings of other kill switches are left out. Settings of other tasks are kept, so that a request to run the cell is
    refused.
    """
    own = settings_of(task, mechanism)
    return {
        name: value
        for name, value in context.settings.items()
        if name in own or not context.declared[name].of_mechanism
    }


def _optional(entry: _Entry, spelled: Callable[[str], str]) -> str | None:
    return None if entry.text is None else _located(entry.node, spelled, entry.text)


def _with_values(model: _Entry, values: Mapping[str, str]) -> str:
    text = model.text or ""
    for name in _VARIABLE.findall(text):
        if name not in values:
            raise refusal(model.node, f"{{{name}}} has no value, so add --set {name}=VALUE")
    return _VARIABLE.sub(lambda found: values[found[1]], text)


def _checked_model(name: str, task: str, condition: str | None) -> str:
    """Return the model's name unchanged if it is valid. Raises UsageError if it isn't."""
    check_name(name, task_named(task), condition)
    return name


def _default_reference(model: _Entry, condition: str | None) -> Reference | None:
    """Return a reference to the published figure for this model and condition, or None if there is no such figure."""
    name = model.published or (model.text or "").removeprefix(f"{CALIBRATION}:")
    spelled = {each.model.lower(): each.model for each in figures()}.get(name.lower(), name)
    found = figure_for(spelled, condition or "")
    return Reference(model=found.model, condition=found.condition) if found else None


def _refuse_duplicates(cells: Iterable[ExperimentCell]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for cell in cells:
        if cell.identity in seen:
            raise refusal(cell.place, f"the cell {cell.name} is already at {seen[cell.identity]}, so remove one")
        seen[cell.identity] = cell.place


def _located(node: yaml.Node, read: Callable[[str], str], value: str) -> str:
    """Return ``read(value)``. If this call raises UsageError, add the file and line of ``node`` to the message."""
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(f"{place_of(node)}: {error}") from error
