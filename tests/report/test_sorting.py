"""The order of rows in a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.cli import main
from normbench.errors import UserError
from normbench.report import load, studies
from normbench.report.sections import request, sections
from normbench.report.sorting import parse_rows, sort_rows, sort_runs
from normbench.report.study import Study


@pytest.fixture
def scored(synth: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a store with a test accuracy for each norm and batch size."""

    def write(**accuracies: dict[int, float]) -> Path:
        for norm, values in accuracies.items():
            for batch, value in values.items():
                run = synth.write_run(tmp_path / "runs", synth.config(norm, batch, 0, epochs=2))
                synth.set_result(run, "test_acc", value)
        return tmp_path / "runs"

    return write


def study_of(root: Path) -> Study:
    (study,) = studies(load(root))
    return study


def test_best_rows_come_first(scored: Callable[..., Path]) -> None:
    study = study_of(scored(bn={16: 0.8}, gn={16: 0.9}, ln={16: 0.7}))
    assert study.rows == ["bn", "gn", "ln"]
    assert sort_rows(study, "test_acc").rows == ["gn", "bn", "ln"]
    assert sort_rows(study, "test_acc", reverse=True).rows == ["ln", "bn", "gn"]
    assert sort_rows(study, "test_err").rows == ["gn", "bn", "ln"]
    assert sort_rows(study, None, reverse=True).rows == ["ln", "gn", "bn"]


def test_rows_are_compared_in_the_columns_they_share(scored: Callable[..., Path]) -> None:
    study = study_of(scored(bn={16: 0.8, 64: 0.9}, gn={16: 0.82}))
    assert sort_rows(study, "test_acc").rows == ["gn", "bn"]


def test_diverged_runs_count_at_chance_level(
    scored: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = scored(bn={16: 0.8}, gn={16: 0.9})
    tree = synth.config("gn", 16, 1, epochs=2)
    synth.write_run(root, tree, status="diverged", stop=2)
    assert sort_rows(study_of(root), "test_acc").rows == ["bn", "gn"]


def test_config_keys_sort_by_their_value(scored: Callable[..., Path]) -> None:
    study = study_of(scored(bn={16: 0.8}, gn={16: 0.8}, gn_ws={16: 0.9}))
    assert sort_rows(study, "norm.weight.name,norm").rows == ["bn", "gn", "gn_ws"]
    assert sort_rows(study, "norm.groups,test_acc").rows == ["gn_ws", "gn", "bn"]


def test_sort_metric_may_be_reduced_over_epochs(
    scored: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = scored(bn={16: 0.8}, gn={16: 0.9})
    synth.set_result(next(root.glob("*-gn-*")), "grad_norm_max", 1e3)
    frames, metric = load(root).with_metric("grad_norm_max:max")
    (study,) = studies(frames)
    ordered = sort_rows(study, metric.name, compared=metric).rows
    values = dict(zip(frames.runs["norm"], frames.runs[metric.name], strict=True))
    assert values["gn"] == 1e3
    assert ordered == ["bn", "gn"]
    assert sort_rows(study, metric.name, True, metric).rows == ["gn", "bn"]


def test_unknown_keys_are_refused_for_rows_and_runs(scored: Callable[..., Path]) -> None:
    root = scored(bn={16: 0.8})
    says = "unknown key in --sort 'tset_acc': did you mean 'test_acc'"
    with pytest.raises(UserError, match=says):
        sort_rows(study_of(root), "tset_acc")
    with pytest.raises(UserError, match=says):
        sort_runs(load(root), "tset_acc")


@pytest.mark.usefixtures("one_figure")
def test_report_tables_are_sorted(
    scored: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = scored(bn={16: 0.8}, gn={16: 0.9}, ln={16: 0.7})
    out = tmp_path / "out"
    assert main(["report", str(root), "--sort", "test_acc", "--out", str(out)]) == 0
    lines = (out / "tables" / "test_acc.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert rows[2:] == ["GN", "BN", "LN"]
    assert "--sort test_acc" in (out / "index.html").read_text()
    assert main(["report", str(root), "--sort", "tset_acc", "--out", str(out)]) == 2
    assert "did you mean 'test_acc'" in capsys.readouterr().err


def test_rows_option_selects_and_orders_rows(grid: Callable[..., Path]) -> None:
    frames = load(grid(norms=("bn", "gn", "gn_ws"), batches=(16, 64), seeds=2, epochs=2))
    (section,), _ = sections(
        frames, request(None, "norm,batch", "test_acc", None, None, rows="gn_ws,bn")
    )
    assert section.study.rows == ["gn_ws", "bn"]
    assert [row[0].text for row in section.tables[0].rows] == ["GN+WS", "BN"]
    assert set(section.study.runs["norm"]) == {"bn", "gn_ws"}
    assert {cell.row for cell in section.grid.cells.values()} == {"bn", "gn_ws"}
    corrected = section.grid.cells["gn_ws", 16].baseline
    assert corrected is not None
    assert corrected.p_corrected <= 2 * corrected.p  # two comparisons are left


def test_column_without_runs_of_the_selected_rows_is_left_out(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=2)
    synth.write_grid(root, ("bn",), (64,), 2, 2)
    options = request(None, "norm,batch", "test_acc", None, None, rows="gn")
    (section,), _ = sections(load(root), options)
    assert section.study.columns == [16]


def test_unknown_row_is_refused_with_the_nearest_name(grid: Callable[..., Path]) -> None:
    frames = load(grid(norms=("bn", "gn_ws"), batches=(16,), seeds=1, epochs=2))
    options = request(None, "norm,batch", "test_acc", None, None, rows="bn,gnws")
    with pytest.raises(UserError, match=r"unknown row in --rows 'gnws': did you mean 'gn_ws'"):
        sections(frames, options)
    with pytest.raises(UserError, match="leave --sort out"):
        request(None, "norm,batch", "test_acc", None, None, sort="test_acc", rows="bn")


def test_name_selects_all_rows_that_start_with_it(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn_ws"), batches=(16,), seeds=2, epochs=2)
    for groups in (2, 4):
        for seed in range(2):
            synth.write_run(root, synth.config("gn", 16, seed, epochs=2, norm__groups=groups))
    options = request(None, "norm,batch", "test_acc", None, None, rows="gn,bn")
    (section,), _ = sections(load(root), options)
    assert section.study.rows == ["gn (groups=2)", "gn (groups=4)", "bn"]
    options = request(None, "norm,batch", "test_acc", None, None, rows="gn (groups=4),gn")
    (section,), _ = sections(load(root), options)
    assert section.study.rows == ["gn (groups=4)", "gn (groups=2)"]


def test_commas_in_brackets_belong_to_a_row() -> None:
    assert parse_rows("gn (groups=4, center=False), bn,") == ("gn (groups=4, center=False)", "bn")
