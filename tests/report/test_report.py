"""The commands end to end: the files they write, their messages and refusals."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from normbench.cli import main
from normbench.errors import NormbenchError, UserError
from normbench.report import load
from normbench.report import report as commands


class Written(SimpleNamespace):
    out: Path
    messages: list[str]


@pytest.fixture(scope="module")
def written(mixed_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The report on a store with runs in every state."""
    out = tmp_path_factory.mktemp("report") / "out"
    messages: list[str] = []
    page = commands.report(mixed_store, target=0.93, out=out, say=messages.append)
    assert page == out / "index.html"
    return Written(out=out, messages=messages)


def test_report_writes_all_files(written: Written) -> None:
    names = {path.relative_to(written.out).as_posix() for path in written.out.rglob("*.*")}
    assert names >= {
        "index.html",
        "report.md",
        "data/runs.parquet",
        "data/curves.csv",
        "tables/test_acc.md",
        "tables/test_acc.csv",
        "tables/test_acc.tex",
        "tables/best_val_test_acc.md",
        "tables/test_acc-differences.tex",
        "tables/steps_to_target.md",
        "tables/gap.csv",
        "tables/summary.tex",
        "tables/runs.md",
    }
    figures = {path.stem for path in (written.out / "figures").iterdir()}
    assert figures == {
        "test_acc-by-batch",
        "test_acc-heatmap",
        "test_acc-by-time",
        "images_per_s-by-batch",
        "test_acc-improvement",
        "test_acc-profiles",
        "val_acc-curves",
        "val_loss-curves",
        "lr-curves",
        "grad_norm-curves",
    }
    for stem in figures:
        for kind in ("png", "svg"):
            assert (written.out / "figures" / f"{stem}.{kind}").stat().st_size > 2000
    assert not list(written.out.glob("figures/*.pdf"))
    manifest = json.loads((written.out / commands.MANIFEST).read_text())
    assert set(manifest) == names - {commands.MANIFEST}


def test_every_run_is_accounted_for(written: Written) -> None:
    messages = "\n".join(written.messages)
    assert "63 runs: 57 finished, 3 diverged, 2 interrupted, 1 failed" in messages
    for word in ("holiday-pictures", "notes.txt", "not JSON", "no config.yaml"):
        assert sum(word in line for line in written.messages if line.startswith("left out")) >= 1
    text = (written.out / "report.md").read_text()
    assert text.count("- left out: ") == 4
    assert "digits-resnet8-ln-b128-s0" in text
    assert "a diverged run counts at chance level" in text


def test_csv_and_frames_agree(written: Written, mixed_store: Path) -> None:
    lines = list(csv.DictReader((written.out / "tables" / "test_acc.csv").open()))
    runs = load(mixed_store).runs
    for line in lines:
        if line["diverged"] == "0" and int(line["n"]) > 0:
            cell_runs = runs[(runs["norm"] == line["norm"]) & (runs["batch"] == int(line["batch"]))]
            assert float(line["mean"]) == pytest.approx(cell_runs["test_acc"].mean())
    written_curves = pd.read_parquet(written.out / "data" / "curves.parquet")
    pd.testing.assert_frame_equal(written_curves, load(mixed_store).curves)


def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of the time."""
    monkeypatch.setattr(commands, "draw", lambda *_: [])


def test_second_report_removes_the_files_of_the_first(
    grid: Callable[..., Path],
    synth: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_figures(monkeypatch)
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3)
    synth.write_grid(root, ("bn",), (16,), 2, 3, dataset="mnist")
    out = tmp_path / "out"
    commands.report(root, out=out, say=lambda line: None)
    assert (out / "tables" / "mnist-resnet8" / "summary.md").exists()
    (out / "tables" / "mine.md").write_text("my own notes")
    commands.report(root, "dataset == digits", target=0.5, out=out, say=lambda line: None)
    assert not (out / "tables" / "mnist-resnet8" / "summary.md").exists()
    assert (out / "tables" / "summary.md").exists()
    assert (out / "tables" / "mine.md").exists()


@pytest.mark.parametrize(
    "content", ['["../precious.txt", "{precious}"]', "5", "[5]", "{{", "[" * 9999]
)
def test_manifest_cannot_delete_files_outside_the_report(
    grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    without_figures(monkeypatch)
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=3)
    precious = tmp_path / "precious.txt"
    precious.write_text("keep")
    out = tmp_path / "out"
    out.mkdir()
    (out / commands.MANIFEST).write_text(content.format(precious=precious))
    commands.report(root, out=out, say=lambda line: None)
    assert precious.read_text() == "keep"


def test_running_sweep_is_reported(
    synth: SimpleNamespace, tmp_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    synth.write_run(tmp_store, synth.config("bn", 16, 0), status="running", stop=3)
    synth.write_run(tmp_store, synth.config("bn", 16, 1), status="running", stop=0)
    messages: list[str] = []
    commands.report(tmp_store, out=tmp_path / "out", say=messages.append)
    assert any("2 runs: 2 interrupted" in line for line in messages)
    assert "2 not ended" in "\n".join(messages)


def test_confound_is_reported_everywhere_until_it_is_allowed(
    grid: Callable[..., Path],
    synth: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_figures(monkeypatch)
    root = grid(norms=("bn",), batches=(16, 64), seeds=5, epochs=5)
    synth.write_grid(root, ("gn",), (16, 64), 5, 2, optimizer__lr=0.02)
    out, messages = tmp_path / "out", []
    commands.report(root, out=out, say=messages.append)
    differences = "differ in epochs (BN 5, GN 2) and learning rate (BN 0.1, GN 0.02)"
    hint = "if that is intended, add --allow-confound epochs,optimizer.lr"
    assert sum(line.endswith(hint) for line in messages) == 1
    assert f"Confounded: rows also {differences}." in join_lines("\n".join(messages))
    assert f"Confounded: rows also {differences}." in join_lines(
        commands.text(commands.summary_table(root))
    )
    for name in ("test_acc", "test_acc-differences", "selection", "summary", "train_seconds"):
        for kind in ("md", "tex"):
            assert f"rows also {differences}." in (out / "tables" / f"{name}.{kind}").read_text()
    page = (out / "index.html").read_text()
    assert '<li class="confounded">' in page
    assert '<li class="significant">' not in page
    assert hint in page
    assert hint in (out / "report.md").read_text()
    messages.clear()
    commands.report(root, out=out, say=messages.append, allow_confound="epochs,optimizer.lr")
    assert hint not in "\n".join(messages)
    assert f"Rows also {differences}, as intended." in join_lines("\n".join(messages))
    page = (out / "index.html").read_text()
    assert '<li class="significant">' in page
    assert "--allow-confound epochs,optimizer.lr" in page  # the command of this report


def join_lines(text: str) -> str:
    """Join the lines of a text."""
    return " ".join(text.split())


def test_terminal_table_says_what_had_not_converged(grid: Callable[..., Path]) -> None:
    shown = join_lines(commands.text(commands.summary_table(grid(norms=("bn", "gn"), epochs=1))))
    assert "In 36 of 36 runs the last epoch is the best on validation" in shown
    assert "none was tuned" in shown


def test_one_cell_is_counted_in_the_singular(grid: Callable[..., Path], tmp_path: Path) -> None:
    messages: list[str] = []
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    commands.export(root, out=tmp_path / "one.csv", say=messages.append)
    assert messages[-1].endswith("one.csv (1 cell)")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metric": "test_ac"}, "did you mean 'test_acc'"),
        ({"allow_confound": "epoch"}, "unknown key in --allow-confound 'epoch': did you mean"),
        ({"by": "norm,bach"}, "did you mean 'batch'"),
        ({"baseline": "gnws"}, "did you mean 'gn_ws'"),
        ({"target": 93.0}, "write 0.93"),
        ({"where": "norm == xbn"}, "no run has norm 'xbn'"),
        ({"where": "batch > 4096"}, "keeps none of the 63 runs"),
        ({"metric": "steps_to_target"}, "unknown metric"),
    ],
)
def test_user_errors_are_refused_before_anything_is_written(
    mixed_store: Path, tmp_path: Path, options: dict, says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        commands.report(mixed_store, out=tmp_path / "out", say=lambda line: None, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unwritable_output_folder_is_refused(
    grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(NormbenchError, match="is a file, not a folder"):
        commands.report(root, out=tmp_path / "file" / "out", say=lambda line: None)


def test_summary_table_at_the_end_of_a_sweep(mixed_store: Path, tmp_store: Path) -> None:
    shown = commands.text(commands.summary_table(mixed_store), 80)
    assert "Test accuracy (%): resnet8 on Digits" in shown
    with pytest.raises(UserError, match="there are no runs"):
        commands.summary_table(tmp_store)


def test_summary_table_shows_only_the_named_runs(mixed_store: Path) -> None:
    runs = load(mixed_store).runs
    names = set(runs[(runs["norm"] == "bn") & (runs["status"] == "finished")]["name"])
    shown = commands.text(commands.summary_table(mixed_store, names), 80)
    assert "BN" in shown
    assert "GN" not in shown
    with pytest.raises(UserError, match="there are no runs"):
        commands.summary_table(mixed_store, [])


def test_store_of_only_damaged_runs_is_not_called_empty(
    grid: Callable[..., Path], tmp_path: Path
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=1, epochs=3)
    (summary,) = root.glob("*/summary.json")
    summary.write_text("{}")
    with pytest.raises(
        UserError, match=r"no runs in .* that can be reported: 1 folder is left out"
    ):
        commands.report(root, out=tmp_path / "out", say=lambda line: None)


def test_store_without_a_completed_run_is_reported(
    grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=1, epochs=3)
    for file in root.glob("*/summary.json"):
        file.unlink()
    page = commands.report(root, out=tmp_path / "out", say=lambda line: None)
    assert page.is_file()


def test_diff_names_what_differs(mixed_store: Path, tmp_path: Path) -> None:
    runs = load(mixed_store).runs
    first = runs[(runs["norm"] == "bn") & (runs["batch"] == 16)]["name"].iloc[0]
    second = runs[(runs["norm"] == "gn") & (runs["batch"] == 16)]["name"].iloc[0]
    messages: list[str] = []
    commands.diff(mixed_store, first, second, tmp_path / "diff", say=messages.append)
    text = (tmp_path / "diff" / "diff.md").read_text()
    assert "| norm.groups | –" in text
    assert "| batch" not in text
    assert "weights differ" in text
    assert (tmp_path / "diff" / "curves.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="are the same run"):
        commands.diff(mixed_store, first, first.rpartition("-")[2], say=messages.append)
    with pytest.raises(UserError, match="no-such-run"):
        commands.diff(mixed_store, first, "no-such-run", say=messages.append)


def test_diff_reports_equal_weights(synth: SimpleNamespace, tmp_store: Path) -> None:
    a = synth.write_run(tmp_store, synth.config("bn", 16, 0))
    b = synth.write_run(tmp_store, synth.config("bn", 16, 0, eval_batch=250))
    messages: list[str] = []
    commands.diff(tmp_store, a.name, b.name, say=messages.append)
    assert "equal to the last bit" in "\n".join(messages)
    assert "eval_batch" in "\n".join(messages)


def test_diff_of_runs_without_results(
    synth: SimpleNamespace, tmp_store: Path, tmp_path: Path
) -> None:
    a = synth.write_run(tmp_store, synth.config("bn", 16, 0), status="running", stop=0)
    b = synth.write_run(tmp_store, synth.config("bn", 16, 1), status="diverged", stop=2)
    messages: list[str] = []
    commands.diff(tmp_store, a.name, b.name, tmp_path / "diff", say=messages.append)
    assert "no final weights" in "\n".join(messages) or "differ" in "\n".join(messages)
    (a / "meta.json").write_text("{")
    with pytest.raises(NormbenchError):
        commands.diff(tmp_store, a.name, b.name, say=messages.append)


@pytest.mark.parametrize("kind", ["md", "csv", "tex", "parquet"])
def test_export_in_each_format(mixed_store: Path, tmp_path: Path, kind: str) -> None:
    path = commands.export(
        mixed_store, "norm in [bn, gn]", tmp_path / f"table.{kind}", say=lambda line: None
    )
    assert path is not None
    if kind == "parquet":
        assert len(pd.read_parquet(path)) == 12
    elif kind == "csv":
        assert len(pd.read_csv(path)) == 12
    else:
        assert path.read_text().count("GN") >= 6


def test_export_of_several_studies_distinguishes_them(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    synth.write_grid(root, ("bn",), (16,), 2, 3, dataset="mnist")
    messages: list[str] = []
    assert commands.export(root, say=messages.append) is None
    text = "\n".join(messages)
    assert "Data set" in text
    assert "MNIST" in text
    assert "Digits" in text


def test_export_of_several_stores_is_one_table(
    synth: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, norm in (("desk", "bn"), ("cluster", "gn")):
        for seed in range(2):
            synth.write_run(tmp_path / name, synth.config(norm, 16, seed, epochs=3))
    out = tmp_path / "all.csv"
    names = [str(tmp_path / name) for name in ("desk", "cluster")]
    assert main(["export", *names, "--out", str(out)]) == 0
    assert sorted(pd.read_csv(out)["norm"]) == ["bn", "gn"]
    assert main(["export", *names, "--model", "model.keras"]) == 2
    assert "export --model needs one run, not 2" in capsys.readouterr().err


def test_exported_latex_fits_the_template_of_a_venue(mixed_store: Path, tmp_path: Path) -> None:
    def text(**options: str) -> str:
        path = commands.export(
            mixed_store, out=tmp_path / "runs.tex", say=lambda line: None, **options
        )
        assert path is not None
        return path.read_text()

    assert r"\begin{table*}" not in text()
    assert r"\begin{table*}" in text(style="cvpr")  # wider than a column of CVPR
    with pytest.raises(UserError, match="unknown style 'cvpt': did you mean 'cvpr'"):
        text(style="cvpt")


def test_export_refuses_unusable_formats(mixed_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'docx'"):
        commands.export(mixed_store, out=tmp_path / "x.docx")
    with pytest.raises(UserError, match="needs a file"):
        commands.export(mixed_store, format="parquet")


def test_copied_store_reports_the_same_tables(
    grid: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    root = grid(norms=("bn", "gn"), batches=(16, 32), seeds=3, epochs=3)
    shutil.copytree(root, tmp_path / "copy")
    for source, out in ((root, "one"), (tmp_path / "copy", "two")):
        commands.report(source, out=tmp_path / out, say=lambda line: None)
    for path in (tmp_path / "one" / "tables").glob("*.tex"):
        assert path.read_text() == (tmp_path / "two" / "tables" / path.name).read_text()


def test_studies_with_similar_names_get_separate_files(
    synth: SimpleNamespace, tmp_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_figures(monkeypatch)
    rates = {"GN/A": 0.05, "GN+A": 0.2, "gn/a": 0.4, "n" * 300: 0.8}
    for label, rate in rates.items():
        synth.write_grid(tmp_store, ("bn", "gn"), (16,), 1, 2, label=label, optimizer__lr=rate)
    out = tmp_path / "out"
    commands.report(tmp_store, by=("norm", "batch", "label"), out=out, say=lambda line: None)
    summaries = [pd.read_csv(path) for path in out.glob("tables/*/summary.csv")]
    assert {tuple(frame["label"].unique()) for frame in summaries} == {(key,) for key in rates}
    labeled = [path.read_text() for path in out.glob("tables/*/test_acc.tex")]
    assert len({re.search(r"\\label{(.*)}", tex)[1] for tex in labeled}) == len(rates)
    linked = re.findall(r'href="(tables/[^"]+)/summary.csv"', (out / "index.html").read_text())
    assert len(set(linked)) == len(rates)
