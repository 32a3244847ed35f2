"""Dotted paths of what a config builds, and the options that this takes."""

from __future__ import annotations

from typing import Any

import pytest

from normbench.errors import UserError
from normbench.targets import check_options, options_of, parameters_of, target


class Layer:
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:  # as Keras's layers have one
        return super().__new__(cls)

    def __init__(self, groups: int, epsilon: float = 1e-3, name: str = "", **kwargs: Any) -> None:
        self.groups = groups


class Inheriting(Layer):
    pass


def build(norm: Any, *, depth: int, width: int = 16) -> None:
    """A function in a class's stead."""


def test_a_target_is_imported() -> None:
    assert target("collections.OrderedDict").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Layer", "is no dotted path such as package.module.Class"),
        ("nowhere.at.All", "there is no module 'nowhere'"),
        ("collections.OrderedDit", "unknown name in collections 'OrderedDit': did you mean 'Ord"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(path: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        target(path)
    assert message in str(caught.value)


def test_options_are_what_a_constructor_or_function_names() -> None:
    assert list(parameters_of(Layer)) == ["groups", "epsilon"]  # not a layer's name
    assert list(parameters_of(Inheriting)) == ["groups", "epsilon"]
    assert list(parameters_of(build)) == ["norm", "depth", "width"]


def test_options_of_a_group_leave_out_what_it_is() -> None:
    group = {"name": "gn", "_target_": "a.B", "groups": 8, "weight": {}}
    assert options_of(group, "weight") == {"groups": 8}


def test_unknown_and_missing_options_are_refused() -> None:
    check_options("norm=gn", Inheriting, {"groups": 8})
    with pytest.raises(
        UserError, match=r"unknown option of norm=gn 'group': did you mean 'groups'"
    ):
        check_options("norm=gn", Layer, {"group": 8})
    with pytest.raises(UserError, match=r"norm=gn lacks the option 'groups'"):
        check_options("norm=gn", Layer, {"epsilon": 1.0})
