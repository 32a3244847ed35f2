"""Formatting of numbers, sizes, durations and failures."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from normbench import formats


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (formats.percent, 0.5678, "56.78%"),
        (formats.percent, 0.0, "0.00%"),
        (formats.percent, 1.0, "100.00%"),
        (formats.count, 45000, "45,000"),
        (formats.count, 0, "0"),
        (formats.count, 0.25, "0.25"),
        (formats.count, 1234.5, "1,234"),
        (formats.small, 0.0, "0"),
        (formats.small, 0.31416, "0.3142"),
        (formats.small, 1.88321, "1.8832"),
        (formats.small, 123.456, "123.46"),
        (formats.small, 2e-5, "2.00e-05"),
        (formats.small, -31415.9, "-3.14e+04"),
        (formats.clock, 9.4, "0:09"),
        (formats.clock, 272, "4:32"),
        (formats.clock, 3872, "1:04:32"),
        (formats.clock, 2 * 86400 + 3 * 3600, "2d 03h"),
        (formats.clock, -1, "0:00"),
        (formats.duration, 0.416, "0.42 s"),
        (formats.duration, 12.34, "12.3 s"),
        (formats.duration, 59.97, "1 min 00 s"),
        (formats.duration, 272, "4 min 32 s"),
        (formats.duration, 7440, "2 h 04 min"),
        (formats.age, 59, "59s"),
        (formats.age, 60, "1m"),
        (formats.age, 7199, "1h"),
        (formats.age, 12.5 * 86400, "12d"),
        (formats.age, -3, "0s"),
    ],
)
def test_numbers(write: Callable[[float | None], str], value: float, text: str) -> None:
    assert write(value) == text
    for nothing in (None, math.nan, math.inf):
        assert write(nothing) == formats.UNKNOWN


def test_sizes() -> None:
    assert [formats.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
        "2.0 TiB",
    ]


def test_failure_is_one_line() -> None:
    assert formats.failure({"type": "OOM", "message": "\n no room \nmore"}) == "OOM: no room more"
    assert formats.failure({"type": "KeyboardInterrupt", "message": ""}) == "KeyboardInterrupt"
    assert formats.failure({"type": "E", "message": None}) == "E"
    long = formats.failure({"type": "E", "message": "x" * 999})
    assert len(long) == 300
    assert long.endswith("…")


def test_nouns_agree_with_their_number():
    shown = [formats.counted(number, "cell") for number in (0, 1, 2, 1200)]
    assert shown == ["0 cells", "1 cell", "2 cells", "1,200 cells"]
