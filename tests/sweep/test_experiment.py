"""Experiments: named lists of overrides."""

from __future__ import annotations

import pytest

from normbench.cli.experiments import details, rows
from normbench.config import group_options
from normbench.errors import UserError
from normbench.sweep.experiment import load, unfold
from normbench.sweep.grid import expand
from tests.marks import slow_except

NAMES = group_options()["experiment"]


# The zoo takes seconds to compose: a hundred choices of files.
@pytest.mark.parametrize("name", slow_except([n for n in NAMES if n != "norm_zoo"], NAMES))
def test_every_experiment_composes_at_every_scale(name):
    experiment = load(name)
    assert experiment.title
    for scale in ["full", *experiment.scales]:
        cells = expand([f"+experiment={name}", f"scale={scale}", "batch=16", "seed=0"])
        assert cells
        assert len({cell.run_name for cell in cells}) == len(cells)


@pytest.mark.parametrize("name", slow_except(("bn_paper_mnist", "gn_groups"), NAMES))
def test_cells_of_an_experiment_are_distinct_and_fewer_at_a_small_scale(name):
    counts = {}
    for scale in ["full", *load(name).scales]:
        cells = expand([f"+experiment={name}", f"scale={scale}"])
        counts[scale] = len(cells)
        assert len({cell.run_name for cell in cells}) == len(cells)
    assert counts.get("small", 0) < counts["full"]


def test_an_experiment_is_what_would_be_typed():
    grid = ["norm=bn,gn,gn_ws", "batch=16,64,256", "seed=0,1,2"]
    typed = expand(["dataset=digits", "arch=resnet8", *grid, "epochs=5"])
    assert expand(["+experiment=quickstart"]) == typed
    assert expand(["experiment=quickstart"]) == typed


def test_what_is_typed_beside_it_wins():
    cells = expand(["+experiment=quickstart", "norm=ln", "seed=7", "batch=16"])
    assert [(c.norm_name, c.seed, c.batch) for c in cells] == [("ln", 7, 16)]


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "title: a test\n"
        "overrides: [dataset=digits, 'seed=0,1', epochs=9]\n"
        "variants: [[label=a, norm=bn], [label=b, norm=gn, norm.groups=2]]\n"
        "scales: {small: [epochs=1, 'seed=0']}\n"
    )
    return tmp_path


def test_variants_make_cells_of_their_own_and_a_scale_changes_all(mine):
    cells = expand(["+experiment=mine"], mine)
    assert [(c.label, c.norm_name, c.seed, c.epochs) for c in cells] == [
        ("a", "bn", 0, 9), ("a", "bn", 1, 9), ("b", "gn", 0, 9), ("b", "gn", 1, 9),
    ]  # fmt: skip
    small = expand(["+experiment=mine", "scale=small"], mine)
    assert [(c.label, c.seed, c.epochs) for c in small] == [("a", 0, 1), ("b", 0, 1)]
    assert small[1].norm["groups"] == 2


def test_a_label_is_no_part_of_the_signature(mine):
    cell = expand(["+experiment=mine", "scale=small"], mine)[0]
    typed = expand(["dataset=digits", "norm=bn", "seed=0", "epochs=1"])[0]
    assert cell.label != typed.label
    assert cell.signature == typed.signature


def test_without_an_experiment_nothing_changes():
    assert unfold(["norm=bn,gn", "batch=16"]) == (None, [["norm=bn,gn", "batch=16"]])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+experiment=batch_swep"], "did you mean 'batch_sweep'"),
        (["+experiment=batch_sweep", "scale=smal"], "did you mean 'small'"),
        (["scale=small"], r"\+experiment=NAME"),
        (["+experiment=quickstart", "+experiment=centering"], "one experiment at a time"),
        (["+experiment=quickstart", "norm=gm"], "did you mean 'gn'"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        expand(overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: x\n", "lacks the key 'overrides'"),
        ("title: x\noverrides: []\nscale: {}\n", "did you mean 'scales'"),
        ("title: x\noverrides: norm=bn\n", "must be a list of overrides"),
        ("title: [\n", "no YAML"),
        ("- a\n", "must be a group of keys"),
    ],
)
def test_a_file_that_says_nothing_sensible_is_refused(text, message, mine):
    (mine / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load("mine", mine)


def test_the_list_counts_cells_and_says_what_each_asks(monkeypatch):
    names = ["quickstart", "batch_sweep"]  # the others have many cells
    monkeypatch.setattr(
        "normbench.cli.experiments.group_options", lambda folder: {"experiment": names}
    )
    found = {(row["experiment"], row["scale"]): row for row in rows()}
    assert found["quickstart", "full"]["cells"] == 27
    assert found["batch_sweep", "full"]["cells"] == 4 * 6 * 5
    assert all(row["asks"] for row in found.values())


def test_one_experiment_is_shown_with_its_commands():
    shown = details("batch_sweep")
    assert "normbench sweep +experiment=batch_sweep scale=small" in shown
    assert "norm=bn,gn,bn_ws,gn_ws" in shown
    assert "full: 120" in shown
