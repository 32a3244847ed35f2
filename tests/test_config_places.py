"""Placement: the composed config spells out which normalization goes where."""

from __future__ import annotations

from pathlib import Path

import pytest

from normbench.config import Config, compose
from normbench.errors import UserError

GN = compose(["norm=gn"]).norm
GN_PLACED = {key: value for key, value in GN.items() if key != "weight"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty config folder for a user's norms."""
    (tmp_path / "norm").mkdir()
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    (folder / "norm" / f"{name}.yaml").write_text(text)
    return folder


def test_xbn_config_contains_all_options_of_its_batch_free_norm() -> None:
    config = compose(["norm=xbn"])
    assert config.norm["place"] == "mid"
    assert config.norm["bfn"] == GN_PLACED
    assert config.norm_name == "xbn"
    assert {k: v for k, v in config.norm.items() if k not in ("name", "place", "bfn")} == {
        k: v for k, v in compose(["norm=bn"]).norm.items() if k != "name"
    }
    assert Config.from_dict(config.to_dict()) == config


def test_place_and_batch_free_norm_of_xbn_are_options() -> None:
    config = compose(["norm=xbn", "norm.bfn.epsilon=0.5", "norm.bfn=ln", "norm.place=post"])
    assert config.norm["place"] == "post"
    assert config.norm["bfn"]["name"] == "ln"
    assert config.norm["bfn"]["epsilon"] == 0.5
    assert compose(["norm=xbn", "norm.bfn.groups=4"]).norm["bfn"] == {**GN_PLACED, "groups": 4}
    as_mapping = compose(["norm=xbn", "norm.bfn={norm: gn, groups: 4}"])
    assert as_mapping.signature == compose(["norm=xbn", "norm.bfn.groups=4"]).signature


def test_place_and_batch_free_norm_change_the_signature() -> None:
    overrides = ([], ["norm.place=pre"], ["norm.bfn=ln"], ["norm.bfn.groups=4"])
    assert len({compose(["norm=xbn", *more]).signature for more in overrides}) == 4
    assert compose(["norm=xbn", "norm/weight=ws"]).norm_name == "xbn_ws"


def test_map_of_places_can_be_written_in_yaml(folder: Path) -> None:
    write(
        folder,
        "mixed",
        "defaults: [bn]\nplaces: {mid: gn, post: {norm: gn, groups: 4}, shortcut: none}\n",
    )
    config = compose(["norm=mixed"], folder)
    assert config.norm_name == "mixed"
    assert config.norm["places"] == {
        "mid": GN_PLACED,
        "post": {**GN_PLACED, "groups": 4},
        "shortcut": {"name": "none", "_target_": None},
    }
    changed = compose(["norm=mixed", "norm.places.mid=ln", "norm.places.post.groups=2"], folder)
    assert changed.norm["places"]["mid"]["name"] == "ln"
    assert changed.norm["places"]["post"]["groups"] == 2
    assert "head" not in changed.norm["places"]
    added = compose(["norm=mixed", "norm.places.head=ln"], folder)
    assert added.norm["places"]["head"]["name"] == "ln"


def test_map_of_places_can_use_a_user_norm(folder: Path) -> None:
    write(folder, "mine", "defaults: [gn, _self_]\nname: mine\ngroups: 2\n")
    write(folder, "mixed", "defaults: [bn, _self_]\nname: two kinds\nplaces: {mid: mine}\n")
    config = compose(["norm=mixed"], folder)
    assert config.norm_name == "two kinds"  # an explicit name is kept
    assert config.norm["places"]["mid"] == {**GN_PLACED, "name": "mine", "groups": 2}


def test_name_of_a_map_does_not_repeat_the_weight_parametrization(folder: Path) -> None:
    write(folder, "mixed_ws", "defaults: [bn, override weight: ws]\nplaces: {mid: gn}\n")
    assert compose(["norm=mixed_ws"], folder).norm_name == "mixed_ws"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["norm.place=midd"], "unknown place in norm.place 'midd': did you mean 'mid'?"),
        (["norm.place=null"], "unknown place in norm.place 'None'"),
        (["norm.bfn=gm"], "unknown norm at norm.bfn 'gm': did you mean 'gn'?"),
        (["norm.bfn=3"], "norm.bfn must be the name of a norm, or {norm: NAME, option: value}"),
        (["norm.bfn=gn_ws"], "norm.bfn=gn_ws brings the weight parametrization ws"),
        (["norm.bfn=xbn"], "norm.bfn=xbn has places of its own"),
        (["norm.bfn.group=4"], "unknown key 'norm.bfn.group': did you mean 'norm.bfn.groups'?"),
        (["norm.bfn.groups=four"], "norm.bfn.groups must be a whole number, got 'four'"),
        (["norm.bfn={norm: gn, group: 4}"], "unknown option of norm.bfn=gn 'group'"),
        (["norm.bfn={norm: gn, groups: four}"], "norm.bfn.groups must be a whole number"),
        (["norm.bfn.name=ln"], "decided by the choice of norm.bfn; choose norm.bfn=NAME"),
        (["norm.places.mid=gn"], "unknown key 'norm.places.mid'"),
    ],
)
def test_invalid_placements_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["norm=xbn", *overrides])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("{middle: gn}", "unknown place in norm.places 'middle': did you mean 'mid'?"),
        ("{mid: null}", "norm.places.mid must be the name of a norm"),
        ("{mid: {groups: 4}}", "norm.places.mid must be the name of a norm"),
        ("{mid: lm}", "unknown norm at norm.places.mid 'lm'"),
    ],
)
def test_invalid_maps_of_places_are_refused(folder: Path, places: str, message: str) -> None:
    write(folder, "mixed", f"defaults: [bn]\nplaces: {places}\n")
    with pytest.raises(UserError, match=message):
        compose(["norm=mixed"], folder)


def test_place_named_twice_is_refused(folder: Path) -> None:
    write(folder, "mixed", "defaults: [xbn]\nplaces: {mid: ln}\n")
    with pytest.raises(UserError, match=r"norm\.place=mid is also a key of norm\.places"):
        compose(["norm=mixed"], folder)
