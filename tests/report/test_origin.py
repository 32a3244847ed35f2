"""Mixtures of code, libraries and machines are reported; nothing is dropped silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.report import load
from normbench.report.origin import counts, environment, mixtures, unfinished, verified
from normbench.report.report import report
from normbench.store import verification
from normbench.store.store import Store


def test_single_origin_is_not_a_mixture(mixed_store: Path) -> None:
    assert mixtures(load(mixed_store).runs) == []
    shown = dict(environment(load(mixed_store).runs))
    assert shown["keras"] == "3.15.1"
    assert shown["engine.threads"] == "2"


def test_each_mixture_is_reported_with_its_counts(
    grid: Callable[..., Path], synth: SimpleNamespace
) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=3, epochs=3)
    newer = synth.versions | {"keras": "3.15.2"}
    synth.write_run(
        root,
        synth.config("gn", 16, 0, epochs=3),
        commit="a" * 40,
        versions=newer,
        processor="AMD EPYC",
    )
    # A failed run contributes no number, so its origin does not count.
    synth.write_run(
        root, synth.config("ln", 16, 0, epochs=3), commit="b" * 40, status="failed", stop=1
    )
    found = mixtures(load(root).runs)
    assert found == [
        "runs come from 2 commits: 4f9d2c1e8b (3 runs), aaaaaaaaaa (1 run)",
        "runs come from 2 versions of keras: 3.15.1 (3 runs), 3.15.2 (1 run)",
        "runs come from 2 processors (times cannot be compared): Intel(R) Xeon(R) Processor @ "
        "2.20GHz (3 runs), AMD EPYC (1 run)",
    ]


def test_runs_outside_a_git_checkout_have_no_commit(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    for path in root.glob("*/meta.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "git": None}))
    runs = load(root).runs
    assert mixtures(runs) == []
    assert "commit" not in dict(environment(runs))


def test_split_batches_are_reported(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn",), batches=(16,), seeds=2, epochs=3)
    run = sorted(root.glob("*-s1-*"))[0]
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "micro_batches": 4}))
    runs = load(root).runs
    assert set(runs["accumulate"]) == {1}  # the default: earlier runs do not record it
    assert mixtures(runs) == [
        "batches were split into micro-batches, so batch statistics are those of a micro-batch: "
        f"{run.name} in 4 of 4 images"
    ]


def test_states_are_counted_and_named(mixed_store: Path) -> None:
    frames = load(mixed_store)
    assert counts(frames) == "63 runs: 57 finished, 3 diverged, 2 interrupted, 1 failed"
    lines = unfinished(frames)
    assert [line.partition(":")[0] for line in lines] == ["diverged", "failed", "interrupted"]
    assert "(ResourceExhaustedError)" in lines[1]
    assert "(epoch 9 of 20)" in lines[2]
    assert unfinished(frames, named=1)[0].endswith("and 2 more")


@pytest.mark.usefixtures("one_figure")
def test_report_counts_runs_that_were_trained_again(
    tmp_path: Path, grid: Callable[..., Path]
) -> None:
    store = Store(grid(norms=("bn", "gn"), batches=(16,), seeds=2, epochs=3))
    names = [run.name for run in store.runs()][:2]
    assert verified(load(store)) == []
    for name, verdict in zip(names, ("equal", "differs"), strict=True):
        item = {"run": name, "verdict": verdict, "time": "2026-11-01T10:00:00Z"}
        verification.append(store, [item | {"record": store.run(name).metrics_checksum()}])
    (sentence,) = verified(load(store))
    total = len(store.runs())
    assert sentence == (
        f"2 of {total} runs trained again: 1 equal to the last bit, 1 not verified ({names[1]})"
    )
    lines: list[str] = []
    page = report(store, out=tmp_path / "out", say=lines.append)
    assert f"note: {sentence}" in lines
    assert "trained again: 1 equal to the last bit" in page.read_text(encoding="utf-8")
    assert "trained again: 1 equal" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    (store.root / verification.NAME).write_text("{}")
    assert "verification.json" in verified(load(store))[0]
    assert verified(load(store))[0].endswith("its verdicts are ignored")
