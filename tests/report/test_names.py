"""Printed names of norms and factors, and their order."""

import pytest

from normbench.config import group_options
from normbench.report import names as labels


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
def test_norm_is_printed_with_its_weight_parametrization(name, printed):
    assert labels.norm(name) == printed


def test_every_catalogd_norm_has_a_unique_printed_name():
    printed = {name: labels.norm(name) for name in group_options()["norm"]}
    assert len(set(printed.values())) == len(printed)
    unnamed = [name for name, text in printed.items() if text == name]
    assert not unnamed, unnamed


def test_norms_are_in_table_order_and_numbers_ascending():
    assert labels.ordered("norm", ["zzz", "gn_ws", "bn"]) == ["bn", "gn_ws", "zzz"]
    assert labels.ordered("batch", [512, 16, 64]) == [16, 64, 512]


@pytest.mark.parametrize(
    ("raw", "printed"),
    [
        (0.3, "0.3"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-5, "1e-05"),
        (20.0, "20"),
        (1234567.0, "1234567"),
        (None, "–"),
        (float("nan"), "–"),
        ("", "–"),
        ("a\nb\x1b[31m\u202e\ud800", r"a\nb\x1b[31m\u202e\ud800"),
        ("実験 👩\u200d🔬 $x$ [b]", "実験 👩\u200d🔬 $x$ [b]"),
    ],
)
def test_printed_value_is_one_line_and_unambiguous(raw, printed):
    assert labels.plain(raw) == printed


def test_slugs_are_readable_short_and_unique():
    texts = ["GN 0.1", "a/b", "a+b", "x" * 500, "../..", "実験", "x" * 501, "ok", "ok"]
    slugs = labels.slugs(texts)
    assert slugs[0] == "gn_0.1"
    assert slugs[5] == "実験"
    assert len(set(slugs)) == len(texts)
    assert all(1 <= len(slug.encode()) <= 100 and slug[0] not in "._-" for slug in slugs)
    assert labels.slugs(["a/b", "a+b"]) == slugs[1:3]  # independent of the other texts
