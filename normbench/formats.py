"""Formats: how each kind of number is written for people, the same in every output."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeGuard

from normbench.errors import unwrapped, with_type

#: Written for an unknown number.
UNKNOWN = "–"


def is_known(value: float | None) -> TypeGuard[float]:
    """Return whether ``value`` is a finite number."""
    return value is not None and math.isfinite(value)


def capitalized(text: str) -> str:
    """Return a text with its first letter in upper case and the others unchanged."""
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """Return a text as one line in which every character is visible.

    Line breaks, terminal escapes, lone surrogates, and characters that have no width or change the
    direction of the text are replaced by Python escapes: a line break by a backslash and an ``n``.
    The joiners used in emoji and some scripts are kept.
    """
    if text.isascii() and text.isprintable():  # nearly all texts
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_hidden(character) else character
        for character in text
    )


def _is_hidden(character: str) -> bool:
    if character in "\u200c\u200d":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def counted(number: float | None, noun: str) -> str:
    """Return a number with its noun in the singular or plural: ``1 cell``, ``1,200 cells``.

    An unknown number is a dash, as in :func:`count`.
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Write a fraction as a percentage: 0.5678 is ``56.78%``."""
    return f"{100 * fraction:.{digits}f}%" if is_known(fraction) else UNKNOWN


def count(value: float | None) -> str:
    """Write a count with thousands separators, ``45,000``; a fraction below 10 with two digits."""
    if not is_known(value):
        return UNKNOWN
    return f"{value:.2g}" if value < 10 and value != int(value) else f"{round(value):,}"


def small(value: float | None) -> str:
    """Write a loss, a rate or a norm: ``0.3142``, ``1.8832``, ``123.46``, ``2.00e-05``."""
    if not is_known(value):
        return UNKNOWN
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.2f}"
    return f"{value:.2e}"


def clock(seconds: float | None) -> str:
    """Write a remaining time: ``0:09``, ``4:32``, ``1:04:32``, ``2d 03h``."""
    if not is_known(seconds):
        return UNKNOWN
    total = max(0, round(seconds))
    if total >= 2 * 86400:
        return f"{total // 86400}d {total % 86400 // 3600:02d}h"
    hours, remainder = divmod(total, 3600)
    minutes, secs = divmod(remainder, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def duration(seconds: float | None) -> str:
    """Write an elapsed time: ``0.42 s``, ``12.3 s``, ``4 min 32 s``, ``2 h 04 min``."""
    if not is_known(seconds):
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    total = round(seconds)
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def age(seconds: float | None) -> str:
    """Write an age in its largest unit: ``40s``, ``5m``, ``3h``, ``12d``."""
    if not is_known(seconds):
        return UNKNOWN
    total = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if total >= size:
            return f"{total // size}{unit}"
    return f"{total}s"


def size(number: int) -> str:
    """Write a number of bytes: ``512 B``, ``1.5 MiB``."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def failure(error: Mapping[str, Any]) -> str:
    """Write a recorded error (``type`` and ``message``) in one line of at most 300 characters.

    Earlier versions recorded the message with the text that Keras wraps around it.
    """
    text = with_type(*unwrapped(str(error.get("type")), str(error.get("message") or "")))
    return text if len(text) <= 300 else text[:299] + "…"


def nothing_to_train(summary: Mapping[str, Any]) -> str:
    """Describe how a complete run ended, from its ``summary.json``."""
    if summary.get("status") == "diverged":
        return f"already ended: it diverged in epoch {summary.get('diverged_epoch')}"
    accuracy = summary.get("test_acc")
    result = f" (test accuracy {100 * accuracy:.2f} %)" if is_known(accuracy) else ""
    return f"already finished{result}: nothing to train"


def seconds_since(stamp: Any, now: datetime) -> float | None:
    """Return the seconds from an ISO-8601 time until ``now``; None if it cannot be parsed."""
    try:
        return (now - datetime.fromisoformat(stamp)).total_seconds()
    except (TypeError, ValueError):
        return None
