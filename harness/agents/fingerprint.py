"""Names and hashes of a player's files. A resumed run needs them to find the files and to detect changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def sha256_of(parts: Iterable[bytes]) -> str:
    """Return one SHA-256 hash of all parts, in their order."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8) + part)
    return hashed.hexdigest()


def files_among(words: Iterable[str]) -> Iterator[bytes]:
    """Yield the content of each file whose absolute path is in ``words``.

    The path is a whole word or, as in --config=FILE, the part of a word after the first ``=``.
    """
    for word in words:
        for path in (word, word.partition("=")[2]):
            with suppress(OSError, ValueError):  # most words of a command are no paths
                if path.startswith("/") and Path(path).is_file():
                    yield Path(path).read_bytes()


def absolute_name(name: str) -> str:
    """Return a --model name in which the path after the colon is made absolute.

    If no file or folder has this path, the name is returned unchanged.
    """
    prefix, colon, path = name.partition(":")
    return f"{prefix}:{Path(path).absolute()}" if colon and Path(path).exists() else name
