"""Prepares an agent's text for a grader: removes models' names, cuts it to size and fences it off as data. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

ASSISTANT = "the assistant"
LIMIT_CHARS = 24_000
_CHUNK = re.compile(r"[^\W_]+")
# Parts of models' names that are ordinary words and identify no model by themselves.
_WORDS = """
ai and assistant base beta chat custom exp fast flash for free high instruct it large latest lite low max medium mini
model nano of preview pro reasoning small test the thinking turbo ultra
"""
_ORDINARY = frozenset(_WORDS.split())


def without_names(text: str, names: Iterable[str]) -> str:
    """Replace each name in the text, and each part that identifies a model, by "the assistant".

    Only whole words are replaced; letter case and hyphens don't matter.
    """
    patterns = sorted({pattern for name in names for pattern in _patterns(name)}, key=len, reverse=True)
    if not patterns:
        return text
    # A version may follow the name directly: Claude-4.1, GPT4, o3-2025-04-16.
    found = re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?:[-.\d]*\d[a-z]?)?(?!\w)", re.IGNORECASE)
    return found.sub(ASSISTANT, text)


def _patterns(name: str) -> Iterable[str]:
    chunks = _CHUNK.findall(name)
    if chunks:
        yield r"[\W_]{0,3}".join(map(re.escape, chunks))
    yield from (re.escape(chunk) for chunk in chunks if _identifies(chunk))


def _identifies(chunk: str) -> bool:
    return len(chunk) > 1 and not chunk.isdigit() and chunk.lower() not in _ORDINARY


def bounded(text: str, limit: int = LIMIT_CHARS) -> str:
    """Return at most ``limit`` characters of the text: all of it, or head and tail with a note on what was cut."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def fenced(text: str, boundary: str) -> str:
    """Put the text between two boundary lines that its author could not know.

    Raises ValueError where the text contains the boundary.
    """
    if boundary in text:
        raise ValueError("the text contains its own boundary")
    return f"---- {boundary}\n{text}\n---- {boundary}"
