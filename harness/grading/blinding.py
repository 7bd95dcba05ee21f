"""What a grader must not learn or obey: names are taken out of a text, which is cut and fenced as data. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

ASSISTANT = "the assistant"
LIMIT_CHARS = 24_000
_CHUNK = re.compile(r"[^\W_]+")
# Parts of models' names that are ordinary words: alone they name nobody.
_WORDS = """
ai and assistant base beta chat custom exp fast flash for free high instruct it large latest lite low max medium mini
model nano of preview pro reasoning small test the thinking turbo ultra
"""
_ORDINARY = frozenset(_WORDS.split())


def without_names(text: str, names: Iterable[str]) -> str:
    """The text with each name, and each telling part of one, replaced; whole words, letter case and hyphens aside."""
    patterns = sorted({pattern for name in names for pattern in _patterns(name)}, key=len, reverse=True)
    if not patterns:
        return text
    # A version may hang on to a name: Claude-4.1, GPT4, o3-2025-04-16.
    found = re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?:[-.\d]*\d[a-z]?)?(?!\w)", re.IGNORECASE)
    return found.sub(ASSISTANT, text)


def _patterns(name: str) -> Iterable[str]:
    chunks = _CHUNK.findall(name)
    if chunks:
        yield r"[\W_]{0,3}".join(map(re.escape, chunks))
    yield from (re.escape(chunk) for chunk in chunks if _tells(chunk))


def _tells(chunk: str) -> bool:
    return len(chunk) > 1 and not chunk.isdigit() and chunk.lower() not in _ORDINARY


def bounded(text: str, limit: int = LIMIT_CHARS) -> str:
    """The text, or its head and tail with a word on what lies between: at most ``limit`` characters of it."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def fenced(text: str, boundary: str) -> str:
    """The text between two lines that whoever wrote it could not know. Raises ValueError where it holds them."""
    if boundary in text:
        raise ValueError("the text holds its own boundary")
    return f"---- {boundary}\n{text}\n---- {boundary}"
