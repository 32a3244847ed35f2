"""Overrides: the ``key=value`` arguments of a command line, parsed by Hydra's grammar.

Hydra's lexer accepts only ASCII letters and a few symbols, and converts ``1e3``, ``007`` or
``null`` to values. A key with string values must accept any text, so :func:`parse` quotes values
that Hydra cannot read, and :func:`written` returns a value as it was typed.

In addition to Hydra's ``range(start, stop, step)`` there is ``log(first, last, count)``: ``count``
values from ``first`` to ``last`` with a constant ratio. Without ``count`` it is the entire range on
a log scale, Hydra's ``tag(log, interval(first, last))``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Union

from normbench.errors import UserError


def parse(overrides: Sequence[str]) -> list[Any]:
    """Parse overrides into Hydra ``Override`` objects, with the original argument as ``typed``.

    A value that Hydra's grammar cannot read, such as ``実験`` or ``it's``, is a string.

    Raises:
        UserError: There is no ``key=``.
    """
    from hydra.errors import HydraException

    results = []
    for text in overrides:
        try:
            override = _parse(text)
        except HydraException as error:
            if isinstance(error.__cause__, UserError):  # log() refused its arguments
                raise UserError(f"{text!r}: {error.__cause__}") from None
            try:
                override = _parse(_with_quotes(text))
            except HydraException:
                reason = " ".join(str(error).split())
                raise UserError(f"cannot read {text!r}: write key=value ({reason})") from None
        override.typed = text  # input_line includes the added quotes, for Hydra to parse again
        results.append(override)
    return results


def quoted(text: str) -> str:
    """Quote a text so that Hydra reads it back unchanged."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.single).with_quotes()


def written(override: Any) -> str:
    """Return the value of an override as it was typed."""
    return str(override.typed).partition("=")[2].strip()


def as_text(override: Any) -> str:
    """Return the value of an override for a key with string values.

    A quoted string is unquoted as by Hydra; a number, a list or several values stay as typed.
    """
    if not override.is_sweep_override():
        value = override.value()
        if isinstance(value, str):
            return value
    return written(override)


def values(override: Any) -> list[str]:
    """Return the comma-separated values of an override, each as it was typed."""
    return _split(written(override))


def search_path(config_dir: str) -> str:
    """Return the override that makes Hydra search a second folder for groups.

    Raises:
        UserError: The path contains ``${``, which Hydra would read as an interpolation.
    """
    if "${" in config_dir:
        raise UserError(f"--config-dir {config_dir!r}: Hydra cannot read a path with ${{ in it")
    return f"hydra.searchpath=[{quoted(f'file://{config_dir}')}]"


def refers(value: Any) -> bool:
    """Return whether a value contains an interpolation such as ``${batch}``."""
    return re.search(r"\$\{[^}]+\}", str(value)) is not None


def spaced_evenly(first: float, last: float, count: int) -> list[float] | list[int]:
    """Return ``count`` values from ``first`` to ``last`` with a constant ratio between neighbors.

    If both limits are whole numbers, so are the values. Otherwise the inner values are rounded by
    :func:`rounded`, so that typing a value gives the same number and therefore the same run.

    Raises:
        UserError: A limit is not above 0, the limits are equal, or there are fewer than ``count``
            whole numbers.
    """
    _refuse_log(first, last)
    if first == last or not 2 <= count <= _MOST:
        raise UserError(f"log(first, last, count) needs two limits and a count of 2 to {_MOST:,}")
    numbers = [first * (last / first) ** (index / (count - 1)) for index in range(count)]
    if isinstance(first, int) and isinstance(last, int):
        integers = [round(value) for value in numbers]
        if len(set(integers)) < count:
            raise UserError(
                f"there are not {count} whole numbers on a log scale in {first}..{last}"
            )
        return integers
    return [first, *map(rounded, numbers[1:-1]), last]


def _refuse_log(first: float, last: float) -> None:
    if not (math.isfinite(first) and math.isfinite(last) and min(first, last) > 0):
        raise UserError(f"log() needs limits above 0, got {first:g} and {last:g}")


_MOST = 1000
"""Largest number of values of ``log()``."""


def rounded(value: float) -> float:
    """Return a value unchanged if six significant digits suffice for it, else rounded to three.

    For example, 0.1 / 2 / 2 / 2 / 2 gives 0.00625, and the third of five values from 0.01 to 0.02
    is 0.0141.
    """
    short = float(f"{value:.6g}")
    return short if math.isclose(short, value, rel_tol=1e-9) else float(f"{value:.3g}")


def _parse(text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep

    def log(first: float, last: float, count: int | None = None) -> ChoiceSweep | IntervalSweep:
        if count is None:
            _refuse_log(first, last)
            is_integer = isinstance(first, int) and isinstance(last, int)
            start, end = (first, last) if is_integer else (float(first), float(last))
            return IntervalSweep(start=start, end=end, tags={"log"})
        return ChoiceSweep(list=list(spaced_evenly(first, last, count)))

    # Hydra checks arguments against annotations, but those of this module are strings.
    number = Union[int, float]  # noqa: UP007 - the only form that Hydra supports
    log.__annotations__ = {"first": number, "last": number, "count": int}
    functions = create_functions()
    functions.register(name="log", func=log)
    return OverridesParser(functions=functions).parse_override(text)


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
    """Split at commas outside quotes and brackets; unbalanced brackets leave the text unsplit."""
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
