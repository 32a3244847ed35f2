"""Finding, tagging, removing and restoring runs: ``list --where``, ``tag`` and ``rm``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from normbench.cli import main
from normbench.store.store import Store
from tests.report.conftest import config, write_grid, write_run


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Two norms, two batch sizes, two seeds; and a run that failed."""
    root = write_grid(tmp_path / "runs", norms=("bn", "gn"), batches=(16, 128), seeds=2, epochs=2)
    write_run(root, config("ln", 16, 0, epochs=2), status="failed", stop=1)
    monkeypatch.setenv("NORMBENCH_STORE", str(root))
    return Store(root)


def listed(capsys: Any, *options: str) -> list[dict[str, Any]]:
    assert main(["list", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def error_line(capsys: Any, *words: str) -> str:
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_list_accepts_report_filters(store: Store, capsys: Any) -> None:
    rows = listed(capsys, "--where", "norm == gn and batch <= 64")
    assert [(row["norm"], row["batch"], row["seed"]) for row in rows] == [
        ("gn", 16, 0),
        ("gn", 16, 1),
    ]
    assert "did you mean 'norm'" in error_line(capsys, "list", "--where", "nrom == gn")
    assert main(["list", "--where", "seed == 7"]) == 0
    assert capsys.readouterr().out == "no run matches --where 'seed == 7'\n"


def test_list_sorts_metrics_best_first_and_keys_ascending(store: Store, capsys: Any) -> None:
    accuracies = [row["test_acc"] for row in listed(capsys, "--sort", "test_acc")]
    assert accuracies[-1] is None  # the run that failed
    assert accuracies[:-1] == sorted(accuracies[:-1], reverse=True)
    keys = [(row["batch"], row["norm"]) for row in listed(capsys, "--sort", "batch,norm")]
    assert keys == sorted(keys)
    backwards = listed(capsys, "--sort", "batch,norm", "--reverse")
    assert [(row["batch"], row["norm"]) for row in backwards] == keys[::-1]
    assert "did you mean 'test_acc'" in error_line(capsys, "list", "--sort", "tset_acc")


def test_unreadable_run_is_still_listed_when_sorting(store: Store, capsys: Any) -> None:
    broken = store.runs()[0]
    (broken.path / "meta.json").write_text("{")
    rows = listed(capsys, "--sort", "seed")
    assert len(rows) == 9
    assert rows[-1]["name"] == broken.name


def test_tagged_runs_are_found_by_their_tag(store: Store, capsys: Any) -> None:
    assert main(["tag", "--where", "norm == gn", "--add", "paper,small", "--note", "figure 2"]) == 0
    assert capsys.readouterr().out.count("paper, small; figure 2") == 4
    rows = listed(capsys, "--where", "tag.paper and batch == 16")
    assert [(row["tags"], row["note"]) for row in rows] == [("paper,small", "figure 2")] * 2
    assert main(["tag", rows[0]["name"], "--remove", "paper"]) == 0
    capsys.readouterr()
    assert len(listed(capsys, "--where", "tag.paper")) == 3
    assert len(listed(capsys, "--where", "not tag.paper")) == 6
    error = error_line(capsys, "list", "--where", "tag.papr")
    assert "unknown tag in --where 'papr': did you mean 'paper'?" in error


@pytest.mark.parametrize("empty", [["--note", ""], ["--note="]])
def test_an_empty_note_removes_the_note(store: Store, capsys: Any, empty: list[str]) -> None:
    name = store.runs()[0].name
    assert main(["tag", name, "--note", "figure 2"]) == 0
    assert main(["tag", name, *empty]) == 0
    assert capsys.readouterr().out.endswith(f"{name}: no tags\n")
    assert [row["note"] for row in listed(capsys) if row["name"] == name] == [""]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["tag", "bn"], "nothing to do: use --add, --remove or --note"),
        (["tag", "--add", "paper"], "name runs, or say which with --where"),
        (["tag", "digits", "--where", "seed == 0", "--add", "a"], "not both"),
        (["tag", "--where", "seed == 7", "--add", "a"], "no run matches"),
        (["tag", "--where", "seed == 0", "--add", "a", "--remove", "a"], "both added and removed"),
        (["tag", "--where", "seed == 0", "--add", "a b"], "is not a tag"),
        (["rm"], "name runs, or say which with --where"),
        (["rm", "nothing"], "unknown run 'nothing'"),
        (["rm", "--empty", "digits"], "it takes no run"),
        (["rm", "--restore"], "takes the names of removed runs"),
        (["rm", "--restore", "digits"], "unknown removed run 'digits' (none exist)"),
    ],
)
def test_user_errors_are_one_line_and_change_nothing(
    store: Store, capsys: Any, words: list[str], wanted: str
) -> None:
    before = sorted(path.name for path in store.root.rglob("*"))
    assert wanted in error_line(capsys, *words)
    assert sorted(path.name for path in store.root.rglob("*")) == before


def test_removed_runs_disappear_from_lists_and_can_be_restored(store: Store, capsys: Any) -> None:
    assert main(["rm", "--where", "status == failed", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("would be removed: digits-resnet8-ln-b16-s0")
    assert len(store.runs()) == 9
    assert main(["rm", "--where", "status == failed"]) == 0
    assert "1 run in the trash" in capsys.readouterr().out
    assert len(store.runs()) == len(listed(capsys)) == 8
    assert store.foreign() == []
    run = store.runs()[0]
    content = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert main(["rm", run.name]) == 0
    assert not run.path.exists()
    assert main(["rm", "--restore", run.name.rpartition("-")[2]]) == 0
    assert {name: (run.path / name).read_bytes() for name in content} == content


def test_restore_does_not_overwrite_an_existing_folder(store: Store, capsys: Any) -> None:
    run = store.runs()[0]
    assert main(["rm", run.name]) == 0
    capsys.readouterr()
    run.path.mkdir()
    assert "remove it first" in error_line(capsys, "rm", "--restore", run.name)


def test_run_in_training_is_not_removed(store: Store, capsys: Any) -> None:
    run = store.runs()[0]
    with run.lock(["normbench", "run"]):
        assert main(["rm", run.name]) == 2
    assert run.exists
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_emptying_the_trash_removes_nothing_else(store: Store, capsys: Any) -> None:
    (store.root / ".notes").mkdir()
    first, second = store.runs()[:2]
    first.set_aside("replaced", [])
    assert main(["rm", second.name]) == 0
    capsys.readouterr()
    assert main(["rm", "--empty", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 folders, ")
    assert main(["rm", "--empty"]) == 0
    hidden = [path.name for path in store.root.iterdir() if path.name.startswith(".")]
    assert hidden == [".notes"]
    assert len(store.runs()) == 7
