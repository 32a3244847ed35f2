"""Helpers that move parametrized cases to the slow suite."""

from __future__ import annotations

import pytest

from tests.marks import slow, slow_except, slow_except_on_jax


def test_all_but_the_quick_values_are_slow() -> None:
    bn, gn, none = slow_except(("bn", "none"), ["bn", "gn", "none"])
    assert (bn, none) == ("bn", "none")
    assert gn.values == ("gn",)
    assert [mark.name for mark in gn.marks] == ["slow"]


def test_slow_tuple_supplies_several_arguments() -> None:
    first, second = slow_except([("bn", 4)], [("bn", 4), ("gn", 8)])
    assert first == ("bn", 4)
    assert second.values == ("gn", 8)


def test_slow_case_can_have_one_argument_that_is_a_tuple() -> None:
    case = slow((2, 3))
    assert case.values == ((2, 3),)
    assert [mark.name for mark in case.marks] == ["slow"]


def test_unknown_quick_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not among the values: \['bnn'\]"):
        slow_except(("bn", "bnn"), ["bn", "gn"])


@pytest.mark.parametrize(("backend", "marked"), [("jax", [1, 3]), ("tensorflow", [])])
def test_slow_except_on_jax_marks_values_on_jax_only(
    backend: str, marked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", backend)
    cases = slow_except_on_jax((2,), [1, 2, 3])
    assert [case.values[0] for case in cases if case not in (1, 2, 3)] == marked
