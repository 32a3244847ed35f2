"""Printed names of norms and factors, and their order."""

import pytest

from normbench.config import group_options
from normbench.report import labels


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("gn_ws", "GN+WS"),
        ("bn_sn", "BN+SN"),
        ("gn_scaled_ws", "GN+Scaled WS"),
        ("none_ws", "WS"),
        ("none_scaled_ws", "Scaled WS"),
        ("bcn_ws", "BCN+WS"),
        ("gn_ws (groups=4)", "GN+WS (groups=4)"),
        ("mine", "mine"),
        ("mine_ws", "mine_ws"),
    ],
)
def test_a_norm_is_written_with_its_weight_parametrization(name, printed):
    assert labels.norm(name) == printed


def test_every_catalogued_norm_has_a_name_of_its_own_in_print():
    printed = {name: labels.norm(name) for name in group_options()["norm"]}
    assert len(set(printed.values())) == len(printed)
    left = [name for name, text in printed.items() if text == name]
    assert not left, left


def test_norms_stand_in_the_order_of_tables_and_numbers_by_size():
    assert labels.ordered("norm", ["zzz", "gn_ws", "bn"]) == ["bn", "gn_ws", "zzz"]
    assert labels.ordered("batch", [512, 16, 64]) == [16, 64, 512]
