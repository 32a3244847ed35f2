import pytest

from normbench.errors import UserError
from normbench.sweep.grid import expand


def cells(*overrides):
    return [(c.norm_name, c.batch, c.seed) for c in expand(overrides)]


def test_grid_is_the_product_with_the_last_axis_varying_fastest():
    assert cells("norm=bn,gn", "batch=16", "seed=range(0,2)") == [
        ("bn", 16, 0),
        ("bn", 16, 1),
        ("gn", 16, 0),
        ("gn", 16, 1),
    ]


def test_glob_picks_names_of_a_group():
    got = {norm for norm, _, _ in cells("norm=glob(gn*,exclude=gn_*)")}
    assert got == {"gn"}
    with pytest.raises(UserError, match="matches none of"):
        expand(["norm=glob(zz*)"])
    with pytest.raises(UserError, match="group"):
        expand(["batch=glob(*)"])


def test_equal_cells_are_merged():
    assert len(expand(["optimizer.lr=1,1.0", "norm=bn"])) == 1


def test_no_overrides_give_one_cell():
    assert len(expand([])) == 1


def test_interval_is_refused():
    with pytest.raises(UserError, match="interval"):
        expand(["optimizer.lr=interval(0.1,0.2)"])


def test_unknown_names_are_refused_before_anything_runs():
    with pytest.raises(UserError, match="did you mean 'gn'"):
        expand(["norm=bn,gm"])


@pytest.mark.slow
def test_two_thousand_cells_expand_in_seconds():
    assert len(expand(["norm=bn,gn", "batch=16,32,64,128", "seed=range(0,250)"])) == 2000
