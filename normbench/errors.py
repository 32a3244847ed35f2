"""Errors that end a command, each a single line that a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

MOST_LISTED = 60
"""Maximum number of allowed names in an error; of more, only the most similar are listed."""

LONGEST_REASON = 600
"""Maximum length of a displayed reason, in characters; the traceback has the full text."""

_KERAS = "Exception encountered when calling "
_AUTOGRAPH = "in user code:"
_CALL_STACK = "(most recent call last):"


class NormbenchError(Exception):
    """A failed run or a problem with this machine; the command exits with 1."""

    exit_code = 1


class UserError(NormbenchError):
    """A mistake in the command or the config, or a missing library that it needs.

    The command exits with 2.
    """

    exit_code = 2

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: one line as a command prints, no traceback."""
        return [f"{type(self).__name__}: {reason(self)}"]


class TooLarge(UserError):
    """A run that needs more memory than the machine has."""


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed name most similar to ``name``, or None if none is close."""
    pool = list(allowed)
    candidates = {candidate.lower(): candidate for candidate in pool}
    cutoff = 0.5 if len(name) < 4 else 0.6  # in a two-letter name, one typo already costs half
    close = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=cutoff)
    if not close and len(name) > 1:
        close = [text for text in candidates if name.lower() in text]
    return candidates[close[0]] if close else None


def unknown(kind: str, name: str, allowed: Iterable[str], see: str = "") -> UserError:
    """Build the error for a name that does not exist, with the nearest and the allowed names.

    Args:
        kind: What the name should be the name of, such as ``"metric"``.
        name: The name.
        allowed: The names that exist.
        see: A command that lists them, for the case that they are too many for an error.
    """
    pool = sorted(allowed)
    close = nearest(name, pool)
    hint = f": did you mean {close!r}?" if close else ""
    return UserError(f"unknown {kind} {name!r}{hint} {_listing(name, pool, see)}")


def _listing(name: str, pool: list[str], see: str) -> str:
    """List the allowed names in parentheses; of very many, the twelve most similar to ``name``."""
    if not pool:
        return "(none exist)"
    if len(pool) <= MOST_LISTED:
        return f"(allowed: {', '.join(pool)})"
    similar = sorted(difflib.get_close_matches(name, pool, n=12, cutoff=0.0))
    more = f"and {len(pool) - len(similar)} more" + (f", see `{see}`" if see else "")
    return f"(allowed: {', '.join(similar)} {more})"


def reason(error: BaseException) -> str:
    """Return the reason of an error in one line, without the text that libraries wrapped around it.

    For an error of this package that is its message alone; for any other, the type comes first.
    """
    kind, message = details(error)
    if isinstance(original(error), NormbenchError):
        return message or kind
    return with_type(kind, message)


def why(error: BaseException) -> str:
    """Return :func:`reason` for use in a sentence: a ValueError or TypeError without its type."""
    kind, message = details(error)
    plain = isinstance(original(error), (NormbenchError, ValueError, TypeError))
    return message if plain and message else with_type(kind, message)


def details(error: BaseException) -> tuple[str, str]:
    """Return the name of an error's type and its message in one line; see :func:`reason`."""
    error = original(error)
    if isinstance(error, NormbenchError):
        return type(error).__name__, " ".join(str(error).split())
    return unwrapped(type(error).__name__, _message(error))


def original(error: BaseException) -> BaseException:
    """Return the error that a layer raised, given the copy that Keras or AutoGraph made of it.

    Both raise a copy whose message embeds the original message, with the original error as its
    ``__context__``.
    """
    while _message(error).startswith((_KERAS, _AUTOGRAPH)) and error.__context__ is not None:
        error = error.__context__
    return error


def unwrapped(kind: str, message: str) -> tuple[str, str]:
    """Extract an error's own type and message from the text that libraries wrapped around it.

    Keras, AutoGraph, TensorFlow's graphs and the callbacks of TensorFlow and JAX each use a format
    of their own.

    Args:
        kind: Name of the error's type.
        message: Its message.

    Returns:
        The type's name, and the message in one line.
    """
    if message.startswith(_KERAS):
        inner = re.search(
            r"\.\n\n(?:\x1b\[1m)?(.*?)(?:\x1b\[0m)?\n\nArguments received by ", message, re.DOTALL
        )
        message = inner[1] if inner else message
    if message.startswith(_AUTOGRAPH):
        return _named(kind, _after_frames(message.removeprefix(_AUTOGRAPH), margin=4))
    if _CALL_STACK in message:
        tail = _after_frames(message.rpartition(_CALL_STACK)[2], margin=0)
        is_graph = message.startswith("Graph execution error")
        if is_graph and message.count(_CALL_STACK) == 1:
            return kind, _plain(tail)
        return _named(kind, tail)
    return kind, _plain(message)


def with_type(kind: str, message: str) -> str:
    """Join a type's name and a message as a Python traceback does."""
    return f"{kind}: {message}" if message else kind


def _message(error: BaseException) -> str:
    """Return an error's message; for a KeyError the key itself, not its repr."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    return str(error)


def _after_frames(text: str, margin: int) -> str:
    """Return the text after the frames of a traceback whose messages are indented by ``margin``."""
    lines = [line[margin:] if not line[:margin].strip() else line for line in text.splitlines()]
    frames = [n for n, line in enumerate(lines) if line.lstrip().startswith('File "')]
    tail = lines[frames[-1] + 1 :] if frames else lines
    while tail and (not tail[0].strip() or tail[0][0] in " \t<"):  # code, <stack traces …>
        tail.pop(0)
    return "\n".join(tail)


def _named(kind: str, message: str) -> tuple[str, str]:
    """Take the type's name from the start of a traceback's last lines, if it is there."""
    match = re.match(r"((?:\w+\.)*\w+)(?:: |:?$)", message, re.MULTILINE)
    if not match:
        return kind, _plain(message)
    return match[1].rpartition(".")[2], _plain(message[match.end() :])


def _plain(message: str) -> str:
    """Return a message in one line, without color codes and the names of graph nodes."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    message = re.sub(
        r"\{\{function_node [^}]*\}\}|\[\[\{\{node [^}]*\}\}\]\]|\[Op:[^\]]*\]", "", message
    )
    message = " ".join(message.split())
    return message if len(message) <= LONGEST_REASON else message[: LONGEST_REASON - 1] + "…"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    errors: list[BaseException] = []  # causes may form a cycle
    current: BaseException | None = error
    while current is not None and current not in errors:
        errors.append(current)
        yield current
        current = current.__cause__ or current.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Recognize out-of-memory errors, including ones that caused another error.

    The types of TensorFlow and JAX are recognized by name, so that neither is imported here.
    """
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "ResourceExhaustedError"
        or ("RESOURCE_EXHAUSTED" in str(cause) and "memory" in str(cause).lower())
        for cause in chain(error)
    )
