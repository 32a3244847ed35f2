"""Overrides: the words ``key=value`` of a command line, read by Hydra's grammar.

Hydra's lexer accepts ASCII letters and a few signs, and turns ``1e3``, ``007`` or ``null`` into
values. A key that holds a text must accept any text, so :func:`parse` quotes values that Hydra
cannot read, and :func:`written` returns a value as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from normbench.errors import UserError


def parse(overrides: Sequence[str]) -> list[Any]:
    """Parse overrides into Hydra ``Override`` objects; ``typed`` is the word as it was typed.

    A value that Hydra's grammar cannot read, such as ``実験`` or ``it's``, is a text.

    Raises:
        UserError: There is no ``key=``.
    """
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            override = _parse(text)
        except HydraException as error:
            try:
                override = _parse(_with_quotes(text))
            except HydraException:
                reason = " ".join(str(error).split())
                raise UserError(f"cannot read {text!r}: write key=value ({reason})") from None
        override.typed = text  # input_line has the added quotes, so that Hydra can read it again
        parsed.append(override)
    return parsed


def quoted(text: str) -> str:
    """Quote a text so that Hydra reads it back unchanged."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def written(override: Any) -> str:
    """Return the value of an override as it was typed."""
    return str(override.typed).partition("=")[2].strip()


def as_text(override: Any) -> str:
    """Return the text that an override gives to a key that holds a text.

    A quoted text is unquoted as Hydra does it; a number, a list or several values stay as typed.
    """
    if not override.is_sweep_override():
        value = override.value()
        if isinstance(value, str):
            return value
    return written(override)


def values(override: Any) -> list[str]:
    """Return the values ``a,b,c`` of an override, each as it was typed."""
    return _split(written(override))


def search_path(config_dir: str) -> str:
    """Return the override that makes Hydra search a second folder for groups.

    Raises:
        UserError: The path has ``${``, which Hydra would take for an interpolation.
    """
    if "${" in config_dir:
        raise UserError(f"--config-dir {config_dir!r}: Hydra cannot read a path with ${{ in it")
    return f"hydra.searchpath=[{quoted(f'file://{config_dir}')}]"


def refers(value: Any) -> bool:
    """Return whether a value has an interpolation such as ``${batch}``."""
    return re.search(r"\$\{[^}]+\}", str(value)) is not None


def _parse(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(text)


def _with_quotes(text: str) -> str:
    """Quote the elements of an override's value that Hydra cannot read."""
    key, equals, value = text.partition("=")
    return f"{key}{equals}{_quote(value.strip())}" if equals else text


def _quote(value: str) -> str:
    from hydra.errors import HydraException

    elements = _split(value)
    if not all(elements):
        return quoted(value)
    if len(elements) > 1:
        return ",".join(map(_quote, elements))
    try:
        _parse(f"key={value}")
    except HydraException:
        if value[0] == "[" and value[-1] == "]" and all(inner := _split(value[1:-1])):
            return f"[{','.join(map(_quote, inner))}]"
        return quoted(value)
    return value


_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _split(value: str) -> list[str]:
    """Split at commas outside quotes and brackets; a text with unbalanced ones stays whole."""
    elements, start, open_, i = [], 0, list[str](), 0
    while i < len(value):
        sign = value[i]
        if sign == "\\":
            i += 1
        elif sign in "\"'" and value[start:i].rstrip()[-1:] in ("", "[", "(", "{", ",", ":"):
            end = i + 1
            while end < len(value) and value[end] != sign:
                end += 2 if value[end] == "\\" else 1
            i = end if end < len(value) else i
        elif sign in _CLOSING:
            open_.append(_CLOSING[sign])
        elif sign in _CLOSING.values():
            if not open_ or open_.pop() != sign:
                return [value]
        elif sign == "," and not open_:
            elements.append(value[start:i].strip())
            start = i + 1
        i += 1
    return [value] if open_ else [*elements, value[start:].strip()]
