"""The same configs in two stores and at two commits, with a verdict on each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from normbench.cli import main
from normbench.errors import UserError
from normbench.report import report as commands
from normbench.report.sides import Comparison, Sides, compare
from normbench.report.statistics import half_width_of_difference
from normbench.report.stores import load_stores

OLD, NEW = "a1" * 20, "b2" * 20
Write = Callable[..., Path]


@pytest.fixture
def write(synth: SimpleNamespace, tmp_path: Path) -> Write:
    """A function that writes runs of one config, one per test accuracy, and returns the store."""

    def write_runs(
        store: str,
        values: dict[int, float | None],
        *,
        weights: str | None = None,
        commit: str = OLD,
        norm: str = "bn",
        **changes: object,
    ) -> Path:
        for seed, value in values.items():
            run = synth.write_run(
                tmp_path / store,
                synth.config(norm, 16, seed, epochs=3, **changes),
                commit=commit,
                status="finished" if value is not None else "diverged",
                stop=None if value is not None else 2,
            )
            path = run / "summary.json"
            summary = json.loads(path.read_text())
            summary["weights_sha256"] = None
            if value is not None:
                summary |= {"test_acc": value, "weights_sha256": f"{weights or store}-{seed}"}
            path.write_text(json.dumps(summary))
        return tmp_path / store

    return write_runs


def sides_of(*stores: Path, by: str = "store", metric: str = "test_acc") -> Sides:
    frames, _ = load_stores(stores, (by,))
    return compare(frames, by, metric)


def single_comparison(sides: Sides) -> Comparison:
    (item,) = sides.found
    return item


def test_equal_weights_are_equal_bits(write: Write) -> None:
    first = write("first", {0: 0.9, 1: 0.91, 2: 0.92}, weights="w")
    second = write("second", {1: 0.91, 2: 0.92, 3: 0.99}, weights="w")
    sides = sides_of(first, second)
    item = single_comparison(sides)
    assert (item.verdict, item.remark) == ("equal", "of 2 shared seeds")
    assert (item.shared, item.equal, item.difference) == (2, 2, 0)
    assert sides.exit_code == 0
    assert sides.summary == "1 config in both: 1 equal bits"


def test_equal_weights_with_other_results_are_different(write: Write) -> None:
    first = write("first", {0: 0.9, 1: 0.91}, weights="w")
    second = write("second", {0: 0.9, 1: 0.911}, weights="w")
    item = single_comparison(sides_of(first, second))
    assert (item.verdict, item.remark) == ("different", "equal weights, different test_acc")


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.90, 0.92, 0.94], [0.91, 0.93, 0.95], "within"),
        ([0.90, 0.92, 0.94], [0.80, 0.82, 0.84], "different"),
        ([0.90, 0.92, 0.94], [0.93], "within"),
        ([0.90, 0.92, 0.94], [0.70], "different"),
        ([0.90, 0.90], [0.90, 0.90], "within"),
        ([0.90, 0.90], [0.91, 0.91], "different"),
        ([0.90], [0.93], "unknown"),
    ],
)
def test_means_are_compared_with_the_spread_over_seeds(
    write: Write, first: Sequence[float], second: Sequence[float], verdict: str
) -> None:
    sides = sides_of(
        write("first", dict(enumerate(first))), write("second", dict(enumerate(second, 5)))
    )
    item = single_comparison(sides)
    assert item.verdict == verdict
    assert item.difference == pytest.approx(np.mean(second) - np.mean(first))
    assert math.isnan(item.half_width) == (verdict == "unknown")
    assert sides.exit_code == (verdict == "different")


def test_interval_matches_the_t_test_with_pooled_variance() -> None:
    first, second = [0.9, 0.95, 0.92], [0.91, 0.99, 0.93, 0.9]
    result = stats.ttest_ind(second, first).confidence_interval(0.95)
    half = half_width_of_difference(first, second)
    assert half == pytest.approx((result.high - result.low) / 2)
    result = stats.ttest_ind(second, first).confidence_interval(1 - 0.05 / 4)
    wide = half_width_of_difference(first, second, tests=4)
    assert wide == pytest.approx((result.high - result.low) / 2)
    assert math.isnan(half_width_of_difference([1.0], [2.0]))
    assert math.isnan(half_width_of_difference([], [2.0, 3.0]))


def test_false_alarm_rate_is_controlled_over_all_configs(write: Write) -> None:
    values = {0: 0.9, 1: 0.91, 2: 0.92}
    first = write("first", values)
    second = write("second", {seed: value + 0.025 for seed, value in values.items()})
    alone = single_comparison(sides_of(first, second))
    assert alone.verdict == "different"
    for store in ("first", "second"):
        write(store, values, optimizer__lr=0.2)
    sides = sides_of(first, second)
    assert [item.verdict for item in sides.found] == ["within", "within"]
    assert sides.found[0].half_width > alone.half_width
    names = [f"digits-resnet8-bn-b16 optimizer.lr={rate}" for rate in (0.1, 0.2)]
    assert [item.name for item in sides.found] == names


def test_equal_bits_in_some_seeds_are_reported(write: Write) -> None:
    first = write("first", {0: 0.9, 1: 0.91}, weights="w")
    write("second", {0: 0.9}, weights="w")
    item = single_comparison(sides_of(first, write("second", {1: 0.92})))
    assert (item.verdict, item.remark) == ("within", "equal bits in 1 of 2 seeds")


@pytest.mark.parametrize(
    ("first", "second", "verdict", "remark"),
    [
        ([None, None], [None, None], "equal", ""),
        ([0.9, 0.91], [None, None], "different", "diverged: 0 of 2 and 2 of 2"),
        ([0.9, 0.91], [0.9, None], "unknown", "diverged: 0 of 2 and 1 of 2"),
    ],
)
def test_diverged_runs(write: Write, first: list, second: list, verdict: str, remark: str) -> None:
    stores = write("first", dict(enumerate(first))), write("second", dict(enumerate(second)))
    item = single_comparison(sides_of(*stores))
    assert (item.verdict, item.remark) == (verdict, remark)


def test_configs_are_distinguished_and_one_sided_ones_counted(write: Write) -> None:
    first = write("first", {0: 0.9, 1: 0.91})
    write("first", {0: 0.9, 1: 0.91, 2: 0.92}, norm="gn")
    second = write("second", {0: 0.9}, label="another label")
    write("second", {0: 0.9}, optimizer__lr=0.3)
    sides = sides_of(first, second)
    assert single_comparison(sides).name == "digits-resnet8-bn-b16"
    assert sides.only == [(1, 3), (1, 1)]
    assert sides.summary == (
        "1 config in both: 1 within the spread; only in first: 1 config (3 runs); "
        "only in second: 1 config (1 run)"
    )


def test_two_commits_in_one_store(write: Write) -> None:
    store = write("runs", {0: 0.9, 1: 0.91})
    write("runs", {2: 0.8, 3: 0.81}, commit=NEW)
    sides = sides_of(store, by="commit")
    assert sides.names == (OLD[:10], NEW[:10])
    assert single_comparison(sides).verdict == "different"
    write("runs", {4: 0.9}, commit="c3" * 20)
    with pytest.raises(UserError, match=r"of 3 commits, a1a1a1a1a1 \(2 runs\), .* choose two"):
        sides_of(store, by="commit")
    chosen = f"commit in ['{OLD[:7]}', '{NEW[:10]}']"
    lines: list[str] = []
    assert commands.diff_sides(store, "commit", chosen, say=lines.append) == 1
    assert lines[-1] == "1 config in both: 1 different"


def test_different_origins_are_reported(write: Write) -> None:
    first = write("first", {0: 0.9})
    second = write("second", {0: 0.9}, commit=NEW)
    assert sides_of(first, second).origin == [
        f"commit of the code: first {OLD[:10]}, second {NEW[:10]}"
    ]


def test_diff_command(
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = write("first", {0: 0.90, 1: 0.91}), write("second", {0: 0.95, 1: 0.96})
    (next(first.iterdir()) / "summary.json").write_text("{")
    (next(iter(sorted(second.iterdir()))) / "summary.json").unlink()
    write("first", {2: 0.92})
    out = tmp_path / "out"
    assert main(["diff", str(first), "--out", str(out), str(second)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "left out: first/digits-resnet8-bn-b16-s" in printed
    assert "; 1 run not complete" in printed
    assert "Within the spread: the change of the mean is no larger than ±" in printed
    (row,) = pd.read_csv(out / "configs.csv").to_dict("records")
    assert (row["runs_1"], row["runs_2"], row["verdict"]) == (2, 1, "within the spread")
    assert "digits-resnet8-bn-b16" in (out / "diff.md").read_text()
    monkeypatch.setenv("NORMBENCH_STORE", str(first))
    assert main(["diff", "--by", "commit"]) == 2
    assert "there are no two commits to compare" in capsys.readouterr().err


def test_runs_of_two_stores_are_compared_by_their_paths(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(next(write(name, {0: 0.9}, weights="w").iterdir())) for name in ("a", "b")]
    assert main(["diff", *paths]) == 0
    printed = capsys.readouterr().out
    assert f"first: {paths[0]}\nsecond: {paths[1]}\n" in printed
    assert "equal to the last bit" in " ".join(printed.split())
    assert main(["diff", paths[0], paths[0]]) == 2
    assert "are the same run" in capsys.readouterr().err


def test_user_errors_are_one_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    store, other = str(write("first", {0: 0.9})), str(write("other", {0: 0.9}))
    apart = str(write("apart", {0: 0.9}, norm="gn"))
    for words, says in (
        ([], "two runs or two stores, not 0"),
        ([store], "two stores, not 1"),
        ([store, other, store], "is named twice"),
        ([store, store + "2"], f"{store!r} is a store and {store + '2'!r} is not"),
        ([store, other, "--by", "norm"], "unknown side in --by 'norm' (allowed: commit, store)"),
        ([store, other, "--metric", "test_ac"], "did you mean 'test_acc'?"),
        ([store, other, "--where", "norm == xbn"], "no run has norm 'xbn'"),
        ([store, other, "--by", "commit"], "no two commits"),
        ([store, other, "--metric", "images_per_s"], "is not compared: times depend"),
        ([store, apart], "have no config of which both have complete runs (1 config and"),
        (["a", "b", "--by", "commit"], "--by is for stores, and 'a' is not a store"),
        (["a", "b", "--store", store, "--metric", "gap"], "--metric is for stores"),
    ):
        assert main(["diff", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
