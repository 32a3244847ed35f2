"""Studies of comparable runs: runs that are not comparable are never averaged."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.errors import UserError
from normbench.report import load
from normbench.report.study import parse_by, studies


def test_one_study_where_only_rows_columns_and_seeds_vary(mixed_store: Path) -> None:
    (study,) = studies(load(mixed_store))
    assert study.rows == ["none", "bn", "gn", "gn_ws", "ln", "in"]
    assert study.columns == [16, 32, 64, 128, 256, 512]
    assert study.title == "resnet8 on Digits"
    assert len(study.runs) == 63


def test_data_sets_and_rates_separate_studies(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32), seeds=2, epochs=3)
    synth.write_grid(root, ("bn",), (16,), 2, 8, dataset="mnist")
    synth.write_grid(root, ("bn", "gn"), (16,), 2, 3, optimizer__lr=0.5)
    found_studies = studies(load(root))
    titles = [study.title for study in found_studies]
    # The data set already determines the epochs, so they are not part of the title.
    assert len(found_studies) == 3
    assert titles[0] == "resnet8 on Digits, optimizer.lr 0.1"
    assert sum(len(study.runs) for study in found_studies) == 14
    for study in found_studies:
        assert not study.runs.duplicated(["row", "column", "seed"]).any()


def test_keys_determined_by_the_column_do_not_separate_studies(
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


def test_third_factor_separates_studies(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 32), seeds=2, epochs=3)
    found_studies = studies(load(root), ("norm", "epochs", "batch"))
    assert [study.context["batch"] for study in found_studies] == [16, 32]


def test_one_factor_is_enough(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    (study,) = studies(load(root), ("norm",))
    assert study.columns == [""]
    assert study.column("") == "all"


def test_any_factors_give_a_title_and_a_slug(mixed_store: Path) -> None:
    for by in (("dataset", "arch"), ("arch", "norm"), ("norm", "dataset", "arch", "batch")):
        for study in studies(load(mixed_store), by):
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
def test_bad_factors_are_refused(mixed_store: Path, by: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        studies(load(mixed_store), parse_by(by))


ALIKE = ("GN/A", "GN+A", "gn/a", "..", "a" * 300, "a" * 301, "con\n", "実験", "é", "e\u0301")


def test_studies_with_similar_names_have_unique_titles_and_folders(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    for place, label in enumerate(ALIKE):
        change = {"label": label, "optimizer__lr": 0.05 + place / 100}
        synth.write_grid(tmp_store, ("bn",), (16,), 1, 2, **change)
    found_studies = studies(load(tmp_store), ("norm", "batch", "label"))
    assert len({study.title for study in found_studies}) == len(ALIKE)
    slugs = {unicodedata.normalize("NFKC", study.slug.casefold()) for study in found_studies}
    assert len(slugs) == len(ALIKE)
    for study in found_studies:
        assert len(study.slug.encode()) <= 100
        assert set(study.slug) - set("._-") <= {c for c in study.slug if c.isalnum()}
        assert study.slug[0].isalnum()


def test_folder_name_includes_what_separates_the_studies(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    for rate in (0.1, 0.5):
        synth.write_grid(tmp_store, ("bn",), (16,), 1, 2, optimizer__lr=rate)
    slugs = {study.slug for study in studies(load(tmp_store))}
    assert slugs == {"digits-resnet8-0.1", "digits-resnet8-0.5"}


def test_numbers_differing_in_the_last_digit_separate_studies_and_rows(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    for rate in (0.3, 0.1 + 0.2):
        synth.write_grid(tmp_store, ("bn",), (16,), 1, 2, optimizer__lr=rate)
    for eps in (1e-5, 1.0000000000000003e-5):
        synth.write_grid(tmp_store, ("gn",), (16,), 1, 2, norm__epsilon=eps, optimizer__lr=0.3)
    found_studies = studies(load(tmp_store))
    titles = {study.title.rpartition(" ")[2] for study in found_studies}
    assert titles == {"0.3", "0.30000000000000004"}
    (rows,) = [study.rows for study in found_studies if study.title.endswith(" 0.3")]
    assert rows[1:] == ["gn (epsilon=1.0000000000000003e-05)", "gn (epsilon=1e-05)"]


def test_rows_with_the_same_printed_name_keep_their_own_names(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    synth.write_grid(tmp_store, ("bn", "gn", "BN"), (16,), 1, 2)
    (study,) = studies(load(tmp_store))
    assert [study.row(row) for row in study.rows] == ["bn", "GN", "BN"]
