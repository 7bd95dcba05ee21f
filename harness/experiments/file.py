"""Reading an experiment's file. What it names that isn't there is refused with its line and the nearest name."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from analysis.published import figure_for, figures
from harness.agents.providers.local.gguf import PREFIX
from harness.agents.providers.presets import choose
from harness.agents.registry import default_task, is_live, make_model
from harness.agents.scripted.calibration import KIND
from harness.errors import UsageError
from harness.experiments.experiment import Experiment, ExperimentCell
from harness.resources import pick
from harness.store.records import Reference
from harness.strict_yaml import (
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
from harness.tasks.conditions import Condition, condition_for, conditions_with
from harness.tasks.registry import DEFAULT_IMAGE, image_named, mechanism_for, task_named

_KEYS = (
    "experiment about margin n seed models tasks conditions mechanisms images only overrides cells set conditions_file "
    "questions notice_after message_limit ask_after max_cost"
)
_WHERE = "model task condition mechanism image"
_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of the file, where it stands, and for a model the name it was published under."""

    text: str | None
    node: yaml.Node
    published: str | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the file's words are read with."""

    conditions: Mapping[str, Condition]
    values: Mapping[str, str]
    n: int | None


def read_experiment(file: Path, given: Mapping[str, str] | None = None) -> Experiment:
    """The experiment of a file; ``given`` are the values of ``--set``. Raises UsageError."""
    nodes = list(documents(file, "an experiment"))
    if len(nodes) > 1:
        raise refusal(nodes[1], "an experiment is one document, so put a second one into a file of its own")
    fields = fields_of(nodes[0], "experiment", _KEYS, needs="experiment")
    known = _Known(
        conditions_with(_conditions_file(fields, file)), _values(fields, given or {}), _whole(fields, "n", 1)
    )
    _refuse_unused(given or {}, file)
    cells = [*_grid(fields, nodes[0], known), *_single_cells(fields, known)]
    if not cells:
        raise refusal(nodes[0], "the experiment has no cell, so give it models and conditions, or cells")
    for cell in cells:
        if cell.n is None and cell.model.partition(":")[0] not in ("demo", "script", "replay"):
            raise refusal(cell.place, f"the cell {cell.name} has no n, so write how many trials it has")
    _refuse_twins(cells)
    return Experiment(
        name=_name(fields["experiment"]),
        about=string_in(fields, "about") or "",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        cells=tuple(cells),
        conditions=_conditions_file(fields, file),
        margin=_margin(fields),
        seed=_whole(fields, "seed", 0),
        questions=_whole(fields, "questions", 1),
        notice_after=_whole(fields, "notice_after", 1),
        message_limit=_whole(fields, "message_limit", 1) or 60,
        ask_after="ask_after" in fields and flag(fields["ask_after"], "ask_after"),
        max_cost=number(fields["max_cost"], "max_cost", whole=False) if "max_cost" in fields else None,
    )


# ---- what stands at the top ----


def _name(node: yaml.Node) -> str:
    value = scalar(node, "experiment")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise refusal(node, f"the name {shown(value)} isn't kebab-case, so write it like 'paper-grid'")
    return value


def _whole(fields: Mapping[str, yaml.Node], key: str, least: int) -> int | None:
    return int(number(fields[key], key, least=least)) if key in fields else None


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
        raise UsageError(f"{plain(file)}: --set {name}: the file asks for no such value, but for {listed}.")


def _values(fields: Mapping[str, yaml.Node], given: Mapping[str, str]) -> dict[str, str]:
    usual = {name: scalar(node, name) for name, node in pairs_of(fields["set"], "set")} if "set" in fields else {}
    return {**usual, **given}


# ---- the grid ----


def _grid(fields: Mapping[str, yaml.Node], top: yaml.Node, known: _Known) -> Iterator[ExperimentCell]:
    """The cells of the grid. A condition meets its own task only."""
    if "models" not in fields:
        return
    axes = {
        "model": [_model_word(node) for node in items_of(fields["models"], "models")],
        "condition": _words(fields, "conditions", top, lambda name: _spelled(name, known)),
        "task": _words(fields, "tasks", top, lambda name: task_named(name).name),
        "mechanism": _words(fields, "mechanisms", top),
        "image": _words(fields, "images", top),
    }
    for word in axes["condition"]:
        if not any(_fit(word.text, task.text, known) for task in axes["task"]):
            raise refusal(word.node, f"condition '{word.text}' is of none of the tasks, so name its task")
    only = "only" in fields and choice(fields["only"], "only", "published") == "published"
    overrides = [_override(node) for node in _optional_items(fields, "overrides")]
    used: list[_Override] = []
    for combined in itertools.product(*axes.values()):
        words = dict(zip(axes, combined, strict=True))
        condition = words["condition"].text
        if not _fit(condition, words["task"].text, known):
            continue
        if only and _usual_reference(words["model"], condition) is None:
            continue
        cell = _cell(words, known)
        mine = [override for override in overrides if override.fits(cell)]
        used += mine
        if mine:
            cell = cell.model_copy(update={"n": mine[-1].n})
        if cell.n != 0:
            yield cell
    for override in overrides:
        if override not in used:
            raise refusal(override.node, "the override fits no cell of the grid, so correct a name, or take it out")


def _spelled(condition: str, known: _Known) -> str:
    return pick("condition", condition, known.conditions)


def _optional_items(fields: Mapping[str, yaml.Node], key: str) -> list[yaml.Node]:
    return items_of(fields[key], key) if key in fields else []


def _words(
    fields: Mapping[str, yaml.Node], key: str, top: yaml.Node, spelled: Callable[[str], str] = str
) -> list[_Word]:
    """The words of a list, or one that leaves it open."""
    if key not in fields:
        return [_Word(None, top)]
    nodes = items_of(fields[key], key)
    return [_Word(_at(node, spelled, scalar(node, key)), node) for node in nodes]


def _model_word(node: yaml.Node) -> _Word:
    if isinstance(node, yaml.MappingNode):
        fields = fields_of(node, "model", "model published", needs="model published")
        published = _at(fields["published"], _published_model, scalar(fields["published"], "published"))
        return _Word(scalar(fields["model"], "model"), fields["model"], published)
    return _Word(scalar(node, "model"), node)


def _published_model(name: str) -> str:
    return pick("published model", name, {each.model for each in figures()})


def _fit(condition: str | None, task: str | None, known: _Known) -> bool:
    return condition is None or task is None or known.conditions[condition].task == task


@dataclass(frozen=True)
class _Override:
    """Another ``n`` for the cells that have all that is named; 0 leaves them out."""

    node: yaml.Node
    where: Mapping[str, str]
    n: int | None

    def fits(self, cell: ExperimentCell) -> bool:
        """Whether a cell is meant."""
        mine = cell.model_dump() | {"model": cell.template}
        return all(str(mine[key]).lower() == value.lower() for key, value in self.where.items())


def _override(node: yaml.Node) -> _Override:
    fields = fields_of(node, "override", f"{_WHERE} n", needs="n")
    where = {key: scalar(fields[key], key) for key in _WHERE.split() if key in fields}
    return _Override(node, where, _whole(fields, "n", 0))


def _single_cells(fields: Mapping[str, yaml.Node], known: _Known) -> Iterator[ExperimentCell]:
    for node in _optional_items(fields, "cells"):
        own = fields_of(node, "cell", f"{_WHERE} n published", needs="model")
        words = {key: _Word(string_in(own, key), own.get(key, node)) for key in _WHERE.split()}
        cell = _cell(words, known)
        n, published = _whole(own, "n", 1), _reference(own["published"]) if "published" in own else None
        yield cell.model_copy(update={"n": n or cell.n, "published": published or cell.published})


def _reference(node: yaml.Node) -> Reference:
    fields = fields_of(node, "published", " ".join(_ATTRIBUTES), needs="model condition")
    words = {key: _published_word(key, at) for key, at in fields.items()}
    if figure_for(**words) is None:
        raise refusal(node, "no figure was published for these together, so name another")
    return Reference(**words)


# The keys of a reference, and the attributes of a figure that they are looked up in.
_ATTRIBUTES = {"model": "model", "condition": "condition", "source": "source_id", "setting": "setting"}


def _published_word(key: str, node: yaml.Node) -> str:
    known = {str(found) for each in figures() if (found := getattr(each, _ATTRIBUTES[key]))}
    return _at(node, lambda name: pick(f"published {key}", name, known), scalar(node, key))


# ---- one cell ----


def _cell(words: Mapping[str, _Word], known: _Known) -> ExperimentCell:
    """Every name is looked up here, so that a cell that can't be run is refused before any is."""
    model = words["model"]
    name = _filled(model, known.values)
    condition = _optional(words["condition"], lambda given: _spelled(given, known))
    task = _optional(words["task"], lambda given: task_named(given).name)
    task = task or (known.conditions[condition].task if condition else default_task(name))
    if condition:
        _at(words["condition"].node, lambda given: condition_for(task, given, known.conditions).name, condition)
    _at(model.node, lambda given: _checked_model(given, task, condition), name)
    return ExperimentCell(
        model=name,
        template=model.text or "",
        task=task,
        condition=condition,
        mechanism=_optional(words["mechanism"], lambda given: mechanism_for(task, given).name)
        or mechanism_for(task, None).name,
        image=_optional(words["image"], image_named) or DEFAULT_IMAGE,
        n=known.n,
        published=_usual_reference(model, condition),
        place=place_of(model.node),
    )


def _optional(word: _Word, spelled: Callable[[str], str]) -> str | None:
    return None if word.text is None else _at(word.node, spelled, word.text)


def _filled(model: _Word, values: Mapping[str, str]) -> str:
    text = model.text or ""
    for name in _VARIABLE.findall(text):
        if name not in values:
            raise refusal(model.node, f"{{{name}}} has no value, so add --set {name}=VALUE")
    return _VARIABLE.sub(lambda found: values[found[1]], text)


def _checked_model(name: str, task: str, condition: str | None) -> str:
    """A live model's name is checked without its key: that is asked for when it is run."""
    if is_live(name) and not name.startswith(PREFIX):
        choose(name)
    else:
        make_model(name, task_named(task), condition=condition)
    return name


def _usual_reference(model: _Word, condition: str | None) -> Reference | None:
    """The published figure of the same model and condition, if there is one."""
    name = model.published or (model.text or "").removeprefix(f"{KIND}:")
    spelled = {each.model.lower(): each.model for each in figures()}.get(name.lower(), name)
    found = figure_for(spelled, condition or "")
    return Reference(model=found.model, condition=found.condition) if found else None


def _refuse_twins(cells: Iterable[ExperimentCell]) -> None:
    seen: dict[tuple[str, ...], str] = {}
    for cell in cells:
        if cell.identity in seen:
            raise refusal(cell.place, f"the cell {cell.name} stands at {seen[cell.identity]} already, so remove one")
        seen[cell.identity] = cell.place


def _at(node: yaml.Node, read: Callable[[str], str], value: str) -> str:
    """``read(value)``, its refusal with the place in the file."""
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(f"{place_of(node)}: {error}") from error
