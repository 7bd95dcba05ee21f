"""Measures the code's structure: folders, import layers, sizes. ``python -m benchmarks.structure [CHECKOUT]``."""

from __future__ import annotations

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PACKAGES = ("harness", "analysis")


def name_of(file: Path, root: Path) -> str:
    """Return a module's dotted name."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """Return a module's folder in ``harness``, its own name if it lies in no folder, or its package elsewhere."""
    return ".".join(module.split(".")[:2]) if module.startswith("harness.") else module.split(".", maxsplit=1)[0]


def imports(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Yield the project's modules that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = inner if inner in modules else node.module
                if found in modules:
                    yield found


def floors(graph: dict[str, set[str]]) -> int:
    """Return the length of the longest import chain, or 0 if the graph has a cycle."""
    height: dict[str, int] = {}
    try:
        for node in TopologicalSorter(graph).static_order():
            height[node] = 1 + max((height[each] for each in graph.get(node, ())), default=0)
    except CycleError:
        return 0
    return max(height.values())


def two_way(graph: dict[str, set[str]]) -> list[str]:
    """Return the pairs of folders that import each other."""
    return sorted(f"{a} <-> {b}" for a in graph for b in graph[a] if a < b and a in graph.get(b, ()))


def spread(values: list[int]) -> dict[str, float]:
    """Return the median and the 90th percentile."""
    return {"median": median(values), "p90": quantiles(values, n=10)[-1]}


def measure(root: Path) -> dict[str, Any]:
    """Measure one checkout."""
    files = {name_of(file, root): file for top in PACKAGES for file in sorted((root / top).rglob("*.py"))}
    trees = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}
    graph = {name: set(imports(tree, set(files))) - {name, "harness"} for name, tree in trees.items()}
    folders: dict[str, set[str]] = {}
    for name, used in graph.items():
        here = folder_of(name)
        folders.setdefault(here, set()).update(folder_of(each) for each in used if folder_of(each) != here)
    functions = [
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    in_folder = Counter(str(file.parent.relative_to(root)) for file in files.values() if file.stem[0] != "_")
    return {
        "entries in harness/": len([each for each in (root / "harness").iterdir() if each.name != "__pycache__"]),
        "loose modules in harness/": len([*(root / "harness").glob("[!_]*.py")]),
        "modules": len(files),
        "most modules in a folder": in_folder.most_common(1)[0],
        "floors of modules": floors(graph),
        "floors of folders": floors(folders),
        "arrows between folders": sum(len(used) for used in folders.values()),
        "folders that import each other": two_way(folders),
        "lines of a function": spread(functions),
        "lines of a module": spread([len(file.read_text(encoding="utf-8").splitlines()) for file in files.values()]),
        "words of README": len((root / "README.md").read_text(encoding="utf-8").split()),
    }


if __name__ == "__main__":
    checkout = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent
    print(json.dumps(measure(checkout), indent=1))
