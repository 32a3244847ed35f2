"""Errors that end a command, each a single line a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NormbenchError(Exception):
    """A failed run or an environment that does not serve; the command exits with 1."""

    exit_code = 1


class UserError(NormbenchError):
    """A mistake in what was asked for; the command exits with 2."""

    exit_code = 2


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name most like ``name``, or None when nothing is close."""
    pool = list(allowed)
    folded = {candidate.lower(): candidate for candidate in pool}
    cutoff = 0.5 if len(name) < 4 else 0.6  # one wrong letter of two is half
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=cutoff)
    if not close and len(name) > 1:
        close = [text for text in folded if name.lower() in text]
    return folded[close[0]] if close else None


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """Build the error for a name that does not exist: the value, the nearest, what is allowed."""
    pool = sorted(allowed)
    close = nearest(name, pool)
    hint = f": did you mean {close!r}?" if close else ""
    listing = f"(allowed: {', '.join(pool)})" if pool else "(none exist)"
    return UserError(f"unknown {kind} {name!r}{hint} {listing}")
