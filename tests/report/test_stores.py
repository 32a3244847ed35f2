"""Several stores read as one set of runs, and reported together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.cli import main
from normbench.errors import UserError
from normbench.report import build, load, studies
from normbench.report import report as commands
from normbench.report.grid import default_baseline
from normbench.report.metrics import METRICS
from normbench.report.stores import load_stores, store_names

OLD, NEW = "a1" * 20, "b2" * 20


def set_weights(run: Path, checksum: str) -> None:
    """Change the checksum of a run's final weights."""
    path = run / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": checksum}))


@pytest.fixture
def two_stores(synth: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Two stores: bn and gn with seeds 0 to 2, and bn at another commit with seeds 1 to 3."""
    first, second = tmp_path / "first", tmp_path / "second"
    for seed in range(3):
        for norm in ("bn", "gn"):
            synth.write_run(first, synth.config(norm, 16, seed, epochs=3), commit=OLD)
    for seed in range(1, 4):
        synth.write_run(second, synth.config("bn", 16, seed, epochs=3), commit=NEW)
    return SimpleNamespace(first=first, second=second, both=[first, second])


def test_single_store_is_read_like_load(two_stores: SimpleNamespace) -> None:
    frames, notes = load_stores(str(two_stores.first))
    assert not notes
    assert not frames.stores
    assert frames.runs.equals(load(two_stores.first).runs)


def test_copies_of_a_run_count_once(two_stores: SimpleNamespace) -> None:
    frames, notes = load_stores(two_stores.both)
    assert notes == ["2 runs are in several stores and count once"]
    assert len(frames.runs) == 7
    assert frames.runs["name"].is_unique
    assert frames.runs["name"].is_monotonic_increasing
    assert frames.curves.groupby("run").size().to_dict() == dict.fromkeys(frames.runs["name"], 3)
    assert [(store.name, store.runs) for store in frames.stores] == [("first", 6), ("second", 3)]


def test_first_store_counts_where_weights_differ(two_stores: SimpleNamespace) -> None:
    for run in two_stores.second.iterdir():
        set_weights(run, "0" * 64)
    for stores, name in ((two_stores.both, "first"), (two_stores.both[::-1], "second")):
        frames, (note,) = load_stores(stores)
        shared = frames.runs[(frames.runs["norm"] == "bn") & frames.runs["seed"].isin([1, 2])]
        assert list(shared["store"]) == [name, name]
        assert note.startswith("2 runs have different weights in different stores (digits-")
        assert "named first on the command line counts" in note


def test_complete_run_is_preferred_to_an_incomplete_one(two_stores: SimpleNamespace) -> None:
    (run,) = two_stores.first.glob("*-bn-b16-s1-*")
    (run / "summary.json").unlink()
    frames, notes = load_stores(two_stores.both)
    (row,) = frames.runs[(frames.runs["norm"] == "bn") & (frames.runs["seed"] == 1)].to_dict(
        "records"
    )
    assert (row["store"], row["status"]) == ("second", "finished")
    assert any("1 run is complete in one store and not in another" in note for note in notes)


def test_diverged_runs_with_equal_results_are_copies(
    synth: SimpleNamespace, two_stores: SimpleNamespace
) -> None:
    tree = synth.config("none", 16, 0, epochs=4)
    for root, stop in ((two_stores.first, 2), (two_stores.second, 2)):
        set_weights(synth.write_run(root, tree, status="diverged", stop=stop), "")
    assert load_stores(two_stores.both)[1] == ["3 runs are in several stores and count once"]


@pytest.mark.parametrize(("by", "rows"), [("store", ["first", "second"]), ("commit", None)])
def test_stores_and_commits_are_rows(
    two_stores: SimpleNamespace, by: str, rows: list[str] | None
) -> None:
    frames, notes = load_stores(two_stores.both, (by, "norm"))
    assert not notes
    assert len(frames.runs) == 9
    assert frames.runs["name"].is_unique
    assert set(frames.curves["run"]) == set(frames.runs["name"])
    (study,) = studies(frames, (by, "norm"))
    assert study.rows == (rows or [OLD[:10], NEW[:10]])
    grid = build(study, METRICS["test_acc"], default_baseline(study, None))
    first, second = (grid.get(row, "bn") for row in study.rows)
    assert first is not None
    assert second is not None
    assert [*first.values] == [0, 1, 2]
    assert [*second.values] == [1, 2, 3]
    assert second.baseline is not None
    assert (second.baseline.n, second.baseline.mean) == (2, 0.0)


def test_stores_are_in_command_line_order(two_stores: SimpleNamespace) -> None:
    by = ("store", "batch", "norm")
    found = studies(load_stores(two_stores.both[::-1], by)[0], by)
    assert found[0].rows == ["second", "first"]


def test_commits_are_ordered_by_their_runs_and_changes_are_marked(
    synth: SimpleNamespace, tmp_store: Path
) -> None:
    for seed, (commit, started, dirty) in enumerate(
        [(OLD, "2026-11-03T", False), (NEW, "2026-11-01T", False), (NEW, "2026-11-02T", True)]
    ):
        run = synth.write_run(tmp_store, synth.config("bn", 16, seed, epochs=3), commit=commit)
        meta = json.loads((run / "meta.json").read_text())
        meta |= {"started": started + "10:00:00Z", "git": {"commit": commit, "dirty": dirty}}
        (run / "meta.json").write_text(json.dumps(meta))
    (study,) = studies(load(tmp_store), ("commit",))
    assert study.rows == [NEW[:10], f"{NEW[:10]} with changes", OLD[:10]]


def test_store_names_are_the_shortest_unique_paths(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("a/runs", "b/runs", "other", "b/../a/x")]
    assert store_names(roots) == ["a/runs", "b/runs", "other", "x"]
    assert store_names([Path("/runs"), Path("/a/runs")]) == ["/runs", "a/runs"]


def test_tuning_choices_of_several_stores(synth: SimpleNamespace, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = {"norms": ("bn",), "batches": (128,), "seeds": 2, "epochs": 3}
    synth.write_tuned(first, rates=(0.05, 0.1), sweep="20261101-100000-aaaa", **common)
    synth.write_tuned(second, rates=(0.1, 0.2), sweep="20261102-100000-bbbb", **common)
    frames, _ = load_stores([first, second])
    (cell,) = frames.tuned  # one history of sweeps: the last choice counts
    assert cell.chosen == {"optimizer.lr": 0.2}
    assert frames.runs["superseded"].sum() == 2
    apart, _ = load_stores([first, second], ("store",))
    assert [cell.chosen for cell in apart.tuned] == [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.2}]
    assert not apart.runs["superseded"].any()
    assert apart.runs["trial"].sum() == 4
    (study,) = studies(apart, ("store", "batch"))
    assert [tuned.row for tuned in study.tuned] == ["first", "second"]
    assert all(trial.run in set(apart.runs["name"]) for t in study.tuned for trial in t.cell.trials)


@pytest.mark.usefixtures("one_figure")
def test_report_of_two_stores(
    two_stores: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (two_stores.second / "notes.txt").write_text("do not forget")
    out = tmp_path / "out"
    words = [
        "report",
        str(two_stores.first),
        "--by",
        "store,norm",
        str(two_stores.second),
        "--out",
        str(out),
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert f"first: 6 runs in {two_stores.first}" in printed
    assert "together: 9 runs: 9 finished" in printed
    assert "left out: second/notes.txt: a file" in printed
    assert "• second and first have equal values in each shared seed at norm BN." in printed
    assert "second" in (out / "tables" / "test_acc.md").read_text()
    page = (out / "index.html").read_text()
    for run in two_stores.second.glob("digits-*"):
        assert f'href="../second/{run.name}/config.yaml"' in page
    assert f"normbench report {two_stores.first} {two_stores.second} --by store,norm" in page


def test_verifications_of_each_store_are_counted(
    two_stores: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {root: next(root.glob("*-bn-b16-s1-*")).name for root in two_stores.both}
    monkeypatch.setattr(
        "normbench.report.origin.verification.newest",
        lambda store: {names[store.root]: {"verdict": "equal"}},
    )
    frames, _ = load_stores(two_stores.both, ("store",))
    assert "2 of 9 runs trained again: 2 equal" in commands.origin.verified(frames)[0]


def test_user_errors_in_naming_stores(
    two_stores: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(two_stores.first)
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(two_stores.second, broken)
    for path in broken.glob("*/meta.json"):
        path.write_text("{")
    for second, says in (
        (str(two_stores.first), "is named twice"),
        (str(tmp_path / "link"), f"is named twice, as {str(two_stores.first)!r} and as"),
        (str(tmp_path / "nowhere"), "no such folder"),
        (str(tmp_path / "empty"), "there are no runs in"),
        (str(broken), "that can be reported (left out: digits-"),
    ):
        out = tmp_path / "out"
        assert main(["report", str(two_stores.first), second, "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
        assert not out.exists()
    for words in (["a", "b", "--store", "c"], ["a", "--store", "c"]):
        assert main(["report", *words]) == 2
        assert "two stores are named: 'a' and 'c'" in capsys.readouterr().err
    assert main(["report", str(two_stores.first), "--by", "comit"]) == 2
    assert "did you mean 'commit'?" in capsys.readouterr().err
    with pytest.raises(UserError, match="no store is named"):
        load_stores([])
