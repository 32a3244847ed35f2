"""Which runs are compared with which: what is not comparable is never averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.errors import UserError
from normbench.report import load
from normbench.report.study import parse_by, studies


def test_one_study_where_only_rows_columns_and_seeds_vary(motley: Path) -> None:
    (study,) = studies(load(motley))
    assert study.rows == ["none", "bn", "gn", "gn_ws", "ln", "in"]
    assert study.columns == [16, 32, 64, 128, 256, 512]
    assert study.title == "resnet8 on Digits"
    assert len(study.runs) == 63


def test_data_sets_and_rates_part_the_runs(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32), seeds=2, epochs=3)
    synth.write_grid(root, ("bn",), (16,), 2, 8, dataset="mnist")
    synth.write_grid(root, ("bn", "gn"), (16,), 2, 3, optimizer__lr=0.5)
    found = studies(load(root))
    titles = [study.title for study in found]
    # The data set decides the epochs already: they are no further part of a title.
    assert len(found) == 3
    assert titles[0] == "resnet8 on Digits, optimizer.lr 0.1"
    assert sum(len(study.runs) for study in found) == 14
    for study in found:
        assert not study.runs.duplicated(["row", "column", "seed"]).any()


def test_what_a_column_decides_does_not_part(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    synth.write_grid(root, ("bn",), (64,), 2, 3, optimizer__lr=0.4)
    assert len(studies(load(root))) == 1


def test_options_of_one_norm_become_rows(grid: Callable[..., Path], synth: SimpleNamespace) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    synth.write_grid(root, ("gn",), (16,), 2, 3, norm__groups=4)
    (study,) = studies(load(root))
    assert study.rows == ["bn", "gn (groups=4)", "gn (groups=8)"]
    assert [study.row(row) for row in study.rows][1] == "GN (groups=4)"


def test_rows_by_an_option_name_the_runs_without_it(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("gn",), batches=(16,), seeds=1, epochs=3)
    synth.write_grid(root, ("gn",), (16,), 1, 3, norm__groups=4)
    (study,) = studies(load(root), ("norm.groups", "batch"))
    assert study.rows == [4, 8]


def test_a_third_factor_parts_studies(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32), seeds=2, epochs=3)
    found = studies(load(root), ("norm", "epochs", "batch"))
    assert [study.context["batch"] for study in found] == [16, 32]


def test_one_factor_is_enough(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    (study,) = studies(load(root), ("norm",))
    assert study.columns == [""]
    assert study.column("") == "all"


def test_any_factors_make_a_title(motley: Path) -> None:
    for by in (("dataset", "arch"), ("arch", "norm"), ("norm", "dataset", "arch", "batch")):
        for study in studies(load(motley), by):
            assert study.title
            assert study.slug


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("nrom", "did you mean 'norm'"),
        ("norm,norm", "twice"),
        ("", "at least one"),
        ("norm,test_acc", "unknown column"),
        ("norm,seed", "unknown column"),
    ],
)
def test_bad_factors_are_refused(motley: Path, by: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        studies(load(motley), parse_by(by))
