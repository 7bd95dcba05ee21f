"""Prepares an agent's statements for a grader: hides model names, cuts long texts and adds boundaries. No I/O."""

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
    """Replace model names in the text by "the assistant".

    Parts of a name that identify the model are replaced as well. Only whole words are replaced. Letter case and
    punctuation within a name are ignored.
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
    """Return the text, cut in the middle if it is longer than ``limit`` characters.

    A note at the cut contains the number of removed characters.
    """
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def fenced(text: str, boundary: str) -> str:
    """Enclose the text between two lines that contain ``boundary``.

    ``boundary`` must be impossible for the text's author to guess. Raises ValueError if the text contains ``boundary``.
    """
    if boundary in text:
        raise ValueError("the text contains its own boundary")
    return f"---- {boundary}\n{text}\n---- {boundary}"
