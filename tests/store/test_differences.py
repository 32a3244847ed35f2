"""Differences between runs that their names do not show."""

from __future__ import annotations

from typing import Any

import pytest

from normbench.config import compose
from normbench.store.differences import as_overrides, differences, short_names
from normbench.sweep.grid import expand


def overrides_of(*configs: Any) -> list[str]:
    return [
        as_overrides(difference)
        for difference in differences([config.to_dict() for config in configs])
    ]


def test_group_options_are_compared_within_one_choice():
    configs = expand(["norm=bn,gn", "optimizer.lr=0.1,0.05", "seed=0,1"])
    assert overrides_of(*configs) == [
        f"optimizer.lr={lr}" for _ in ("bn", "gn") for lr in (0.1, 0.05) for _ in (0, 1)
    ]
    groups = [compose(["norm=gn", f"norm.groups={n}"]) for n in (4, 8)]
    assert overrides_of(compose(["norm=bn"]), *groups) == ["", "norm.groups=4", "norm.groups=8"]


def test_confounding_option_is_reported():
    configs = [compose(["norm=bn", "epochs=5"]), compose(["norm=gn", "epochs=2"])]
    assert overrides_of(*configs) == ["epochs=5", "epochs=2"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer=sgd,adamw"], ["optimizer=sgd", "optimizer=adamw"]),
        (["dataset=digits,mnist", "arch=resnet8,lenet", "norm=bn,bn_ws"], [""] * 8),
        (["norm=xbn", "norm.bfn=gn,ln"], ["norm.bfn=gn", "norm.bfn=ln"]),
    ],
)
def test_group_choices_are_reported_unless_in_the_run_name(overrides, expected):
    assert overrides_of(*expand(overrides)) == expected


def test_labels_are_reported_but_probes_are_not():
    plain, labeled = compose(["seed=1"]), compose(["label=a b", "probe=[gradients]"])
    assert overrides_of(plain, labeled) == ["label=''", "label=a b"]


def test_numbers_compare_by_value_and_missing_keys_have_defaults():
    new, old = compose(["max_loss=5"]).to_dict(), compose(["max_loss=5"]).to_dict()
    del old["accumulate"]
    old["max_loss"] = 5
    assert differences([new, old]) == [{}, {}]
    assert differences([{**new, "accumulate": 2}, old, {}]) == [
        {"accumulate": 2}, {"accumulate": 1}, {}
    ]  # fmt: skip


def test_malformed_config_is_compared_like_any_other():
    damaged = {"norm": {"weight": [1], "groups": {2: [{}], "x": 1}}, "arch": None, "batch": "x"}
    (one, other) = differences([damaged, compose(["norm=gn"]).to_dict()])
    assert "arch" not in one
    assert other["optimizer"] == "sgd"


def test_short_names_omit_what_all_runs_share():
    names = [f"digits-resnet8-{norm}-b16-s{seed}-0123456{seed}" for norm, seed in
             (("bn", 0), ("gn", 1))]  # fmt: skip
    assert short_names(names, ["", "epochs=5"]) == ["bn s0", "gn s1 epochs=5"]
    assert short_names(names[:1], [""]) == names[:1]
    assert short_names(["my-data-b1", *names[:1]], ["x=1", ""]) == ["my-data-b1 x=1", names[0]]
