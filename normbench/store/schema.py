"""Checks of data read from a file: the keys of a record, and the values of each key.

A check is a function of a value and its position (``sessions.0.pid``) that raises :class:`Mismatch`
if it does not allow the value. The checks of all keys of a file are combined into one, so that code
using the content need not check types again::

    ROW = record({"epoch": integer(1)}, {"val_acc": number(0, 1, null=True)})
    ROW(json.loads(line), "")
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]

#: Deepest nesting of a record. Real ones have six levels; thousands would raise a RecursionError.
DEPTH = 32

_short = reprlib.repr


class Mismatch(ValueError):
    """A value that is not allowed. The message has its position, the value and what is allowed."""


def _mismatch(position: str, value: Any, allowed: str) -> Mismatch:
    return Mismatch(f"{position or 'it'} is {_short(value)}, not {allowed}")


def anything(value: Any, position: str) -> None:
    """Allow every value."""


def number(least: float | None = None, most: float | None = None, *, null: bool = False) -> Check:
    """Allow a finite number in a range, integer or float.

    Args:
        least: Smallest allowed number.
        most: Largest allowed number.
        null: Also allow None, JSON's null, which is written in place of NaN and infinities.
    """
    return _numeric((int, float), "a number", least, most, null)


def integer(least: int | None = None, most: int | None = None, *, null: bool = False) -> Check:
    """Allow a whole number in a range (None too if ``null``)."""
    return _numeric((int,), "a whole number", least, most, null)


def _numeric(
    types: tuple[type, ...], noun: str, least: float | None, most: float | None, null: bool
) -> Check:
    if least is not None and most is not None:
        noun += f" in [{least:g}, {most:g}]"
    elif least is not None:
        noun += f" of at least {least:g}"
    allowed = noun + " or null" * null
    low = -math.inf if least is None else least
    high = math.inf if most is None else most

    def check(value: Any, position: str) -> None:
        if value is None:
            if null:
                return
            raise _mismatch(position, value, allowed)
        if (
            type(value) not in types  # a bool is an int to isinstance()
            or not low <= value <= high
            or (type(value) is float and not math.isfinite(value))
        ):
            raise _mismatch(position, value, allowed)

    return check


def text(*values: str, null: bool = False) -> Check:
    """Allow a string: one of ``values``, or any if there are none (None too if ``null``)."""
    allowed = (" or ".join(map(repr, values)) or "a string") + " or null" * null

    def check(value: Any, position: str) -> None:
        if value is None and null:
            return
        if type(value) is not str or (values and value not in values):
            raise _mismatch(position, value, allowed)

    return check


def boolean(*, null: bool = False) -> Check:
    """Allow True and False (None too if ``null``)."""

    def check(value: Any, position: str) -> None:
        if type(value) is not bool and not (value is None and null):
            raise _mismatch(position, value, "true or false" + " or null" * null)

    return check


def sequence(item: Check = anything, *, least: int = 0, null: bool = False) -> Check:
    """Allow a list of at least ``least`` values that ``item`` allows (None too if ``null``)."""
    allowed = "a list" + (f" of at least {least}" if least else "") + " or null" * null

    def check(value: Any, position: str) -> None:
        if value is None and null:
            return
        if type(value) is not list or len(value) < least:
            raise _mismatch(position, value, allowed)
        for index, element in enumerate(value):
            item(element, f"{position}.{index}")

    return check


def mapping(item: Check = anything, *, null: bool = False) -> Check:
    """Allow a mapping of strings to values that ``item`` allows (None too if ``null``)."""

    def check(value: Any, position: str) -> None:
        if value is None and null:
            return
        if type(value) is not dict:
            raise _mismatch(position, value, "a mapping" + " or null" * null)
        prefix = f"{position}." if position else ""
        for key, element in value.items():
            if type(key) is not str:
                raise Mismatch(f"{prefix}{_short(key)} is a key that is not a string")
            item(element, f"{prefix}{key}")

    return check


def record(
    required: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    *,
    others: Check | None = anything,
    null: bool = False,
) -> Check:
    """Allow a mapping with named keys.

    Args:
        required: Checks of the values of the keys that the mapping must have.
        optional: Checks of the values of the keys that it may have.
        others: Check of the values of all other keys; None forbids other keys.
        null: Also allow None.
    """
    checks = {**required, **(optional or {})}
    a_mapping = mapping(null=null)

    def check(value: Any, position: str) -> None:
        a_mapping(value, position)
        if value is None:
            return
        prefix = f"{position}." if position else ""
        for key in required:
            if key not in value:
                raise Mismatch(f"{prefix}{key} is missing")
        for key, element in value.items():
            check_element = checks.get(key, others)
            if check_element is None:
                raise Mismatch(f"{prefix}{key} is an unknown key")
            check_element(element, f"{prefix}{key}")

    return check


def sound(value: Any, position: str = "", depth: int = 0) -> None:
    """Allow only text that UTF-8 can encode, finite numbers and moderate nesting, at any depth.

    JSON can express more: ``"\\ud800"`` is a lone surrogate, which cannot be printed, and ``1e999``
    is infinite, which would spoil any mean.
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _mismatch(position, value, "valid Unicode text") from None
    elif kind is float:
        if not math.isfinite(value):
            raise _mismatch(position, value, "a finite number")
    elif kind is dict or kind is list:
        if depth == DEPTH:
            raise Mismatch(f"{position.partition('.')[0]} is nested more than {DEPTH} levels deep")
        prefix = f"{position}." if position else ""
        for key, element in value.items() if kind is dict else enumerate(value):
            if kind is dict and type(key) is str and not key.isascii():
                sound(key, f"the key {key!a}")
            sound(element, f"{prefix}{key}", depth + 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse(data: bytes) -> Any:
    """Parse strict JSON in UTF-8, and check the value with :func:`sound`.

    Raises:
        ValueError: It is not JSON, or not sound; the message has the position.
    """
    try:
        value = _DECODER.decode(data.decode())
        sound(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def check_version(value: Mapping[str, Any], known: int) -> None:
    """Refuse a record with another schema than ``known``; a record without one is allowed.

    Raises:
        Mismatch: A newer normbench wrote it.
    """
    if (version := value.get("schema", known)) != known:
        raise Mismatch(f"its schema is {version!r}, but this version of normbench reads {known}")


def parse_record(data: bytes, check: Check | None = None) -> dict[str, Any]:
    """Parse a JSON object that ``check`` allows.

    Raises:
        ValueError: It is not JSON, not an object, or not allowed.
    """
    try:
        value = parse(data)
    except Mismatch:
        raise
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if type(value) is not dict:
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    if check is not None:
        check(value, "")
    return value
