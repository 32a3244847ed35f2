"""Caveats: confounds, training that had not converged, and untuned learning rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from normbench.errors import UserError
from normbench.report import load
from normbench.report.caveats import allowing, describe_values
from normbench.report.figures import batch
from normbench.report.findings import Finding, findings
from normbench.report.frames import Frames, config_columns
from normbench.report.grid import build
from normbench.report.metrics import METRICS
from normbench.report.study import Study, parse_by, studies
from normbench.report.tables import comparisons, differences, matrix, summary
from normbench.sweep.experiment import load as load_experiment
from normbench.sweep.grid import expand

Maker = Callable[..., Path]
DIFFERING = "epochs (BN 5, GN 2) and learning rate (BN 0.1, GN 0.02)"


def study_of(root: Path, *allowed: str, by: tuple[str, ...] = ("norm", "batch")) -> Study:
    (study,) = studies(load(root), by, allowed)
    return study


def findings_in(study: Study, baseline: Any = "bn") -> list[Finding]:
    grid = build(study, METRICS["test_acc"], baseline)
    return findings(grid)


def texts_of(found: list[Finding], strength: str) -> list[str]:
    return [finding.text for finding in found if finding.strength == strength]


@pytest.fixture
def confounded(grid: Maker, synth: SimpleNamespace) -> Path:
    """BN for 5 epochs at a rate of 0.1, GN for 2 at 0.02: GN leads at batch size 16."""
    root = grid(norms=("bn",), batches=(16, 64), seeds=5, epochs=5)
    return synth.write_grid(root, ("gn",), (16, 64), 5, 2, optimizer__lr=0.02)


def test_confounded_difference_is_not_significant(confounded: Path) -> None:
    found = findings_in(study_of(confounded))
    assert (
        texts_of(found, "significant")
        == texts_of(found, "overall")
        == texts_of(found, "suggestive")
        == []
    )
    (text,) = [text for text in texts_of(found, "confounded") if text.startswith("GN beats BN at")]
    assert text.endswith(
        f" Confounded: the rows also differ in {DIFFERING}, so the difference cannot be attributed "
        "to the norm."
    )
    (nothing,) = texts_of(found, "undetected")
    assert nothing.endswith(f"the rows also differ in {DIFFERING}, which may hide a difference.")


def test_confounds_appear_under_tables_and_in_captions(confounded: Path) -> None:
    study = study_of(confounded)
    note = (
        f"Confounded: rows also differ in {DIFFERING}. Differences between rows cannot be "
        "attributed to the norm alone."
    )
    grid = build(study, METRICS["test_acc"], "bn")
    for table in (matrix(grid), differences(grid), comparisons(grid), summary(study)):
        assert note in table.notes
    assert f"resnet8 on Digits; rows also differ in {DIFFERING}." in batch.draw(grid).caption


def test_allowed_difference_is_shown_and_does_not_weaken_findings(confounded: Path) -> None:
    study = study_of(confounded, "epochs", "optimizer")  # a group allows each of its keys
    assert study.notes == [f"Rows also differ in {DIFFERING}, as intended."]
    (text,) = texts_of(findings_in(study), "significant")
    assert text.endswith(f" The rows also differ in {DIFFERING}, as intended.")
    (text,) = texts_of(findings_in(study_of(confounded, "optimizer.lr")), "confounded")[:1]
    assert "Confounded: the rows also differ in epochs (BN 5, GN 2), so" in text
    assert text.endswith("The rows also differ in learning rate (BN 0.1, GN 0.02), as intended.")


def test_summary_has_a_column_for_each_differing_key(confounded: Path) -> None:
    table = summary(study_of(confounded))
    assert list(table.headers[:3]) == ["Epochs", "optimizer.lr", "Norm"]
    assert {(line[1].text, line[2].text) for line in table.rows} == {("0.1", "BN"), ("0.02", "GN")}
    assert list(table.data["optimizer.lr"]) == [0.1, 0.1, 0.02, 0.02]


def test_unknown_key_is_refused(confounded: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'optimizer\.lr'"):
        study_of(confounded, "optimiser.lr")


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"versions": {"keras": "3.16.0"}}, "Keras version (BN 3.15.1, GN 3.16.0)"),
        ({"processor": "AMD EPYC"}, "processor (BN Xeon, GN AMD EPYC)"),
        ({"commit": "a" * 40}, "commit of the code (BN bbbbbbbbbb, GN aaaaaaaaaa)"),
        ({"precision": "mixed_bfloat16"}, "precision (BN float32, GN mixed_bfloat16)"),
        ({"backend": "jax"}, "backend (BN tensorflow, GN jax)"),
        ({"dataset__validation": 100}, "dataset.validation (BN 237, GN 100)"),
        ({"label_smoothing": 0.1}, "label smoothing (BN 0, GN 0.1)"),
        ({"accumulate": 4}, "micro-batches (BN 1, GN 4)"),
    ],
)
def test_every_recorded_key_can_confound(
    tmp_store: Path, synth: SimpleNamespace, changes: dict[str, Any], difference: str
) -> None:
    outside = ("versions", "processor", "commit")
    origin = {"processor": "Xeon", "commit": "b" * 40}
    other = origin | {key: value for key, value in changes.items() if key in outside}
    if "versions" in other:
        other["versions"] = synth.versions | other["versions"]
    inside = {key: value for key, value in changes.items() if key not in outside}
    inside = {"accumulate": 1} | inside
    for seed in range(5):
        write(synth, tmp_store, synth.config("bn", 16, seed, epochs=3, accumulate=1), **origin)
        write(synth, tmp_store, synth.config("gn", 16, seed, epochs=3, **inside), **other)
    study = study_of(tmp_store)
    assert [note for note in study.notes if note.startswith("Confounded")] == [
        f"Confounded: rows also differ in {difference}. Differences between rows cannot be "
        "attributed to the norm alone."
    ]
    assert texts_of(findings_in(study), "significant") == []
    assert len(texts_of(findings_in(study), "confounded")) == 1


def write(synth: SimpleNamespace, root: Path, tree: dict[str, Any], **origin: Any) -> None:
    """Write a run whose recorded engine matches its config."""
    meta = synth.write_run(root, tree, **origin) / "meta.json"
    record = json.loads(meta.read_text())
    record["engine"] |= {
        "backend": tree["backend"],
        "precision": tree["precision"],
        "jit_compile": tree["backend"] == "jax",
    }
    meta.write_text(json.dumps(record))


def test_few_runs_of_another_version_also_confound(grid: Maker, synth: SimpleNamespace) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=5, epochs=3)
    newer = synth.versions | {"keras": "3.16.0"}
    for seed in range(5):
        versions = newer if seed == 4 else synth.versions
        synth.write_run(root, synth.config("gn", 16, seed, epochs=3), versions=versions)
    (text,) = texts_of(findings_in(study_of(root)), "confounded")
    assert "Keras version (BN 3.15.1, GN 3.15.1 and 3.16.0)" in text


def test_versions_that_vary_equally_in_all_cells_do_not_confound(
    grid: Maker, synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=4, epochs=3)
    newer = synth.versions | {"keras": "3.16.0"}
    for norm in ("bn", "gn"):
        synth.write_run(root, synth.config(norm, 16, 4, epochs=3), versions=newer)
    assert study_of(root).conditions == []


def write_user_code_runs(
    synth: SimpleNamespace, root: Path, norm: str, versions: dict[str, str]
) -> None:
    """Write five runs that used user code or data."""
    for seed in range(5):
        path = synth.write_run(root, synth.config(norm, 16, seed, epochs=3)) / "meta.json"
        meta = json.loads(path.read_text())
        meta["own"] = {name: [version] for name, version in versions.items()}
        path.write_text(json.dumps(meta))


def test_user_code_counts_where_both_rows_use_it(tmp_store: Path, synth: SimpleNamespace) -> None:
    data = "data of mine (path=a.npz, flip=True)"
    write_user_code_runs(synth, tmp_store, "bn", {"mine.Net": "1" * 64, data: "2" * 64})
    write_user_code_runs(
        synth, tmp_store, "gn", {"mine.Net": "1" * 64, data: "2" * 64, "mine.Half": "3" * 64}
    )
    assert study_of(tmp_store).conditions == []  # a user's norm is what its row compares
    write_user_code_runs(synth, tmp_store, "ln", {"mine.Net": "4" * 64, data: "5" * 64})
    study = study_of(tmp_store)
    assert [condition.words for condition in study.confounds] == [
        f"version of {data}",
        "version of mine.Net",
    ]
    assert allowing([condition.key for condition in study.confounds]) == "version,version.mine.Net"
    assert study_of(tmp_store, "version").confounds == []


def test_threads_affect_only_rounding(grid: Maker, synth: SimpleNamespace) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=5, epochs=3)
    for run in root.glob("*-gn-*"):
        meta = json.loads((run / "meta.json").read_text())
        meta["engine"]["threads"] = 4
        (run / "meta.json").write_text(json.dumps(meta))
    study = study_of(root)
    assert study.notes == ["Rows also differ in threads (BN 2, GN 4), which only affects rounding."]
    assert len(texts_of(findings_in(study), "significant")) == 1


def test_norm_options_and_scaled_rates_are_not_conditions(mixed_store: Path) -> None:
    # GN has groups, BN has none; all rows scale the rate with the batch size by the same rule.
    assert study_of(mixed_store).conditions == []


def test_different_optimizer_is_reported_with_only_its_rate(
    grid: Maker, synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    adamw = {"name": "adamw", "lr": 0.001, "base_batch": 128, "scaling": "sqrt", "beta1": 0.9}
    synth.write_grid(root, ("gn",), (16,), 2, 3, optimizer=adamw)
    assert [condition.key for condition in study_of(root).conditions] == [
        "optimizer",
        "optimizer.lr",
    ]


def test_column_differences_are_noted_but_do_not_confound(
    grid: Maker, synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn_ws"), batches=(16,), seeds=5, epochs=3)
    synth.write_grid(root, ("bn", "gn_ws"), (64,), 5, 3, optimizer__lr=0.4)
    study = study_of(root)
    assert study.notes == ["Columns also differ in learning rate (16: 0.1, 64: 0.4)."]
    assert study.heading == (
        "resnet8 on Digits; columns also differ in learning rate (16: 0.1, 64: 0.4)"
    )
    assert texts_of(findings_in(study), "confounded") == []


def test_finding_considers_only_differences_in_its_own_columns(
    grid: Maker, synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn", "gn_ws"), batches=(16,), seeds=8, epochs=3)
    synth.write_grid(root, ("bn",), (32,), 8, 3, optimizer__lr=0.1)
    synth.write_grid(root, ("gn_ws",), (32,), 8, 3, optimizer__lr=0.4)
    study = study_of(root)
    assert study.notes[0].startswith(
        "Confounded: rows also differ in learning rate (BN 0.1, GN+WS 0.1 and 0.4)."
    )
    found = findings_in(study)
    (sure,) = texts_of(found, "significant")
    assert "batch size 16" in sure
    assert "batch size 32" not in sure
    assert any("batch size 32 by" in text for text in texts_of(found, "confounded"))


def test_label_represents_an_entire_config(tmp_store: Path, synth: SimpleNamespace) -> None:
    for seed in range(5):
        synth.write_run(tmp_store, synth.config("bn", 16, seed, epochs=3, label="old"))
        synth.write_run(
            tmp_store,
            synth.config("gn", 16, seed, epochs=2, label="new"),
            versions=synth.versions | {"keras": "3.16.0"},
        )
    study = study_of(tmp_store, by=("label",))
    assert study.notes == [
        "Confounded: rows also differ in Keras version (new 3.16.0, old 3.15.1). Differences "
        "between rows cannot be attributed to the configuration alone.",
        "Rows also differ in norm (new GN, old BN) and epochs (new 2, old 3), as intended.",
    ]


def test_seed_dependent_split_is_not_a_condition(tmp_store: Path, synth: SimpleNamespace) -> None:
    for norm, seeds in (("bn", range(3)), ("gn", range(1, 4))):
        for seed in seeds:
            tree = synth.config(norm, 16, seed, epochs=3, dataset__split_seed=seed)
            synth.write_run(tmp_store, tree)
    study = study_of(tmp_store)
    assert study.conditions == []
    assert study.notes == [
        "Rows have different seeds (BN 0–2, GN 1–3): means are over all seeds of a cell, "
        "differences over the seeds that both cells have."
    ]


def test_values_of_many_rows_are_summarized() -> None:
    assert describe_values({"BN": ["5"], "GN": ["2"]}) == "BN 5, GN 2"
    assert (
        describe_values({"BN": ["5"], "GN": ["2"], "LN": ["2"], "IN": ["2"]})
        == "BN 5, all others 2"
    )
    assert describe_values({f"N{i}": [str(i)] for i in range(9)}) == "9 different values"
    assert describe_values({"BN": ["1", "2", "3", "4"], "GN": ["1"]}) == "BN 4 values, GN 1"
    assert describe_values({"16": ["0.1"], "64": ["0.4"]}) == "16: 0.1, 64: 0.4"


@pytest.mark.parametrize(
    "name", ["batch_sweep", "bn_tf_apis", "gn_groups", "quickstart", "ws_wrong_ways"]
)
def test_no_experiment_is_confounded(name: str) -> None:
    study = study_of_experiment(name)
    assert len(study.rows) > 2
    assert study.notes == []


def test_variants_of_a_labeled_experiment_are_intended() -> None:
    study = study_of_experiment("bn_paper_inception")
    (note,) = study.notes
    assert note.startswith("Rows also differ in norm (Inception: No norm, all others: BN), ")
    assert note.endswith(", as intended.")
    assert "BN-x30: 0.045" in note
    assert study.heading == (
        "bn_inception on CIFAR-10; rows also differ in norm, learning rate, arch.activation, "
        "arch.dropout, arch.lrn and weight decay"
    )


def study_of_experiment(name: str) -> Study:
    """Return the study that the first seed of an experiment would give."""
    experiment = load_experiment(name)
    lists = experiment.unfolded("small" if experiment.scales else "full", ["seed=0"])
    rows = [
        {"name": cell.run_name, "status": "finished", **config_columns(cell.to_dict())}
        for overrides in lists
        for cell in expand(overrides)
    ]
    frames = Frames(Path("runs"), pd.DataFrame(rows), pd.DataFrame({"run": []}))
    (study,) = studies(frames, parse_by(experiment.report["by"]))
    return study


def set_best_epoch(root: Path, pattern: str, epoch: int) -> None:
    """Set the epoch that is best on validation."""
    for run in root.glob(pattern):
        path = run / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"best_val_epoch": epoch}))


def test_unconverged_training_is_reported(grid: Maker) -> None:
    root = grid(norms=("bn", "gn"), batches=(16, 64), seeds=3, epochs=4)
    set_best_epoch(root, "*", 4)
    assert texts_of(findings_in(study_of(root)), "caution")[0] == (
        "In 12 of 12 runs the last epoch is the best on validation: training had not converged, "
        "and the order may change."
    )
    set_best_epoch(root, "*-bn-*", 2)
    assert texts_of(findings_in(study_of(root)), "caution")[0] == (
        "In 6 of 6 runs of GN the last epoch is the best on validation: its training had not "
        "converged, and the order may change."
    )
    set_best_epoch(root, "*-gn-*", 3)
    assert not any("converged" in text for text in texts_of(findings_in(study_of(root)), "caution"))


def test_untuned_rates_are_reported(grid: Maker, synth: SimpleNamespace) -> None:
    root = grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=4)
    set_best_epoch(root, "*", 2)
    assert texts_of(findings_in(study_of(root)), "caution") == [
        "Each row was trained at one learning rate; none was tuned, and rows may have different "
        "best rates."
    ]
    # Other rates were tried in shorter runs, which the report's filter leaves out.
    synth.write_grid(root, ("bn",), (16,), 1, 2, optimizer__lr=0.4)
    frames = load(root)
    (study,) = studies(frames.select(frames.runs["epochs"] == 4))
    assert texts_of(findings_in(study), "caution") == [
        "The store has several learning rates of BN; GN was trained at one, which was not tuned."
    ]
    synth.write_grid(root, ("gn",), (16,), 1, 2, optimizer__lr=0.4)
    frames = load(root)
    (study,) = studies(frames.select(frames.runs["epochs"] == 4))
    assert texts_of(findings_in(study), "caution") == []


def test_rows_by_rate_need_no_caution_about_tuning(grid: Maker, synth: SimpleNamespace) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=4)
    synth.write_grid(root, ("bn",), (16,), 2, 4, optimizer__lr=0.4)
    set_best_epoch(root, "*", 2)
    assert texts_of(findings_in(study_of(root, by=("optimizer.lr", "batch")), 0.1), "caution") == []


def test_allowed_rate_differences_are_not_called_untuned(confounded: Path) -> None:
    set_best_epoch(confounded, "*", 1)
    study = study_of(confounded, "optimizer.lr", "epochs")
    assert texts_of(findings_in(study), "caution") == []
