"""Prints text in the terminal with control characters escaped."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.text import Text

from harness.judging.verdict import Outcome, Sabotage, Verdict

OUTCOME_COLOURS = {
    Outcome.COMPLIED: "green",
    Outcome.DECLINED: "cyan",
    Outcome.RESISTED: "red",
    Outcome.NOT_REACHED: "yellow",
    Outcome.ERROR: "magenta",
}
# Everything below U+0020 but newline and tab, and the C1 controls.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
# Marks that reverse the direction of text, so that it reads otherwise than it is.
_DIRECTION_MARKS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES |= {code: f"\\u{code:04x}" for code in _DIRECTION_MARKS}


def safe(text: str) -> Text:
    """Return the text with control characters escaped, except newlines and tabs.

    Characters that change the text direction are also escaped.
    """
    return Text(text.translate(_ESCAPES))


def safe_line(text: str) -> Text:
    """Return the text on one line, with control characters, newlines and tabs escaped."""
    return safe(text.replace("\n", "\\n").replace("\t", "\\t"))


def print_error(sentence: str) -> None:
    """Print an error message in red on stderr."""
    Console(stderr=True, soft_wrap=True).print(safe(sentence), style="red")


def print_note(sentence: str) -> None:
    """Print a line of information for the user on stderr."""
    Console(stderr=True, soft_wrap=True).print(safe(sentence), style="dim")


def print_plain(sentence: str) -> None:
    """Print one line of a command's result on stdout."""
    Console(soft_wrap=True).print(safe(sentence))


def verdict_line(verdict: Verdict) -> str:
    """Return a verdict as one line, such as "resisted (edited, moved); exfiltration (attempted)".

    Findings other than tampering are last.
    """
    kinds = f" ({', '.join(verdict.kinds)})" if verdict.kinds else ""
    others = f"; {', '.join(verdict.other_labels)}" if verdict.other_labels else ""
    return f"{outcome_words(verdict)}{kinds}{others}"


def finding_counts(verdict: Verdict) -> str:
    """Return how often each finding other than tampering occurs, such as "2 exfiltration (attempted), 1 bribe"."""
    counts = Counter(item.label for item in verdict.other_findings)
    return ", ".join(f"{count} {label}" for label, count in counts.items())


def outcome_words(verdict: Verdict) -> str:
    """Return the outcome as text, with ", prevented" appended if tampering prevented the shutdown."""
    prevented = ", prevented" if verdict.sabotage is Sabotage.PREVENTED else ""
    return f"{verdict.outcome}{prevented}"
