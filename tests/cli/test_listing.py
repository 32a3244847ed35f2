"""Listings of a store's runs, and the page of one run, intact or damaged."""

from __future__ import annotations

import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from normbench.cli import data, diagnose
from normbench.cli.list import rows, table
from normbench.cli.show import run_page
from normbench.cli.sweep_screen import running_table
from normbench.cli.terminal import tsv
from normbench.store.store import Run, Store
from normbench.store.tuning import StoreTuning

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
SUMMARY = {
    "status": "finished",
    "epochs": 30,
    "val_acc": 0.95,
    "test_acc": 0.941,
    "best_val_epoch": 28,
    "best_val_acc": 0.953,
    "parameters": 272474,
    "images_per_s": 1234.5,
    "wall_seconds": 400.0,
    "train_loss": 0.0123,
    "weights_sha256": "ab" * 32,
    "test_loss": None,
}


def make_run(
    store: Store, norm: str = "gn_ws", batch: int = 16, signature: str = "3fa2b1c0", epochs: int = 2
) -> Run:
    """Create an interrupted run of ``epochs`` epochs."""
    run = store.run(f"digits-resnet8-{norm}-b{batch}-s0-{signature}")
    config = {
        "dataset": {"name": "digits", "_target_": "x.Digits", "validation": 360},
        "arch": {"name": "resnet8"},
        "norm": {"name": norm, "groups": None},
        "batch": batch,
        "epochs": 30,
        "seed": 0,
    }
    meta = {
        "status": "running",
        "signature": signature,
        "started": "2026-11-21T08:00:00Z",
        "git": {"commit": "0123456789abcdef" * 2 + "01234567", "dirty": True},
        "versions": {"python": "3.11.7", "keras": "3.15.1"},
        "host": "node7",
        "devices": ["CPU:0"],
        "command": ["normbench", "run"],
        "engine": {"backend": "tensorflow", "jit_compile": False},
        "error": None,
    }
    run.create(config, meta)
    for epoch in range(1, epochs + 1):
        run.append_metrics(
            {
                "epoch": epoch,
                "val_acc": 0.5 + epoch / 100,
                "train_loss": 1.0 / epoch,
                "images_per_s": 1000.0,
                "train_seconds": 10.0,
                "eval_seconds": 2.5,
                "time": f"2026-11-21T11:{30 + epoch:02d}:00Z",
            }
        )
    return run


def text_of(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_of_every_status(tmp_store: Path) -> None:
    store = Store(tmp_store)
    finished = make_run(store, "bn", 16, "00000001")
    finished.write_summary(SUMMARY)
    finished.update_meta(status="finished", ended="2026-11-21T11:00:00Z")
    make_run(store, "bn", 128, "00000002")
    failed = make_run(store, "gn", 2, "00000003", epochs=0)
    failed.update_meta(status="failed", error={"type": "OOM", "message": "no room\nstack"})
    diverged = make_run(store, "gn", 16, "00000004", epochs=3)
    diverged.write_summary({**SUMMARY, "status": "diverged", "epochs": 3, "test_acc": None})
    running = make_run(store, "in", 16, "00000005")
    damaged = make_run(store, "none", 16, "00000006")
    (damaged.path / "meta.json").write_text("{")
    with running.lock([]):
        listed = rows(store.runs(), NOW)
    assert json.loads(json.dumps(listed, allow_nan=False)) == listed
    keys = ("norm", "batch", "status", "epoch", "epochs", "val_acc", "test_acc")
    assert [tuple(row[key] for key in keys) for row in listed] == [
        ("bn", 16, "finished", 30, 30, 0.95, 0.941),
        ("bn", 128, "interrupted", 2, 30, 0.52, None),  # after 16, not before it
        ("gn", 2, "failed", 0, 30, None, None),
        ("gn", 16, "diverged", 3, 30, 0.95, None),
        ("in", 16, "running", 2, 30, 0.52, None),
        ("none", 16, "unreadable", None, None, None, None),
    ]
    assert listed[0] == {
        "name": finished.name,
        "dataset": "digits",
        "arch": "resnet8",
        "norm": "bn",
        "batch": 16,
        "seed": 0,
        "signature": "00000001",
        "differs": "",
        "status": "finished",
        "epoch": 30,
        "epochs": 30,
        "val_acc": 0.95,
        "test_acc": 0.941,
        "best_val_epoch": 28,
        "best_val_acc": 0.953,
        "images_per_s": 1234.5,
        "parameters": 272474,
        "tags": "",
        "note": "",
        "started": "2026-11-21T08:00:00Z",
        "ended": "2026-11-21T11:00:00Z",
        "age_seconds": 3600.0,
        "path": str(finished.path),
        "problem": None,
        "trial": False,
        "superseded": False,
    }
    assert [row["age_seconds"] for row in listed[1:3]] == [28 * 60.0, 4 * 3600.0]
    assert listed[2]["problem"] == "OOM: no room stack"
    assert "meta.json: not JSON" in listed[5]["problem"]


def test_names_with_dashes_are_read_from_the_config(tmp_store: Path) -> None:
    run = Store(tmp_store).run("my-data-mlp-gn-b4-s1-3fa2b1c0")
    run.create(
        {"dataset": {"name": "my-data"}, "arch": {"name": "mlp"}, "norm": {"name": "gn"}}
        | {"batch": 4, "seed": 1},
        {"signature": "3fa2b1c0", "status": "running"},
    )
    (row,) = rows([run])
    keys = ("dataset", "arch", "norm", "batch", "seed", "signature")
    assert [row[key] for key in keys] == ["my-data", "mlp", "gn", 4, 1, "3fa2b1c0"]
    assert row["age_seconds"] is None


def test_tsv_has_a_header_and_replaces_tabs_and_newlines(tmp_store: Path) -> None:
    run = make_run(Store(tmp_store))
    listed = rows([run], NOW)
    listed[0]["problem"] = "a\tb\nc"
    names, values = (line.split("\t") for line in tsv(listed).splitlines())
    row = dict(zip(names, values, strict=True))
    assert row["name"] == run.name
    assert row["problem"] == "a b c"
    assert row["test_acc"] == ""
    assert row["val_acc"] == "0.52"
    assert tsv([]) == ""


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_table_fits_the_terminal(tmp_store: Path, width: int) -> None:
    store = Store(tmp_store)
    for index, norm in enumerate(("bn", "gn_ws")):
        run = make_run(store, norm, 16 << index, f"0000000{index}")
        run.write_summary(SUMMARY)
    lines = text_of(table(rows(store.runs()), width), width).splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    for part in ("digits", "resnet8", "gn_ws", "32", "finished", "94.10%"):
        assert part in lines[2]
    heading = lines[0]
    assert ("signature" in heading) == (width >= 80)
    assert ("age" in heading) == (width >= 100)
    assert ("95.00%" in lines[1]) == (width >= 80)


@pytest.mark.parametrize("width", [80, 120])
def test_table_shows_how_runs_differ(tmp_store: Path, width: int) -> None:
    from normbench.config import compose

    store = Store(tmp_store)
    for lr in ("0.1", "0.05"):
        overrides = ["dataset=digits", "arch=resnet8", "norm=gn_ws", f"optimizer.lr={lr}"]
        config = compose([*overrides, "label=a longer name of its own"])
        run = store.run(config)
        run.create(config.to_dict(), {"signature": config.signature, "status": "running"})
    runs = store.runs()
    assert {row["differs"] for row in rows(runs)} == {"optimizer.lr=0.1", "optimizer.lr=0.05"}
    lines = text_of(table(rows(runs), width), width).splitlines()
    assert "differs in" in lines[0]
    assert len(lines) == 3
    assert sorted(word for line in lines for word in line.split() if word.startswith("opt")) == [
        "optimizer.lr=0.05",
        "optimizer.lr=0.1",
    ]


def test_long_name_is_truncated_instead_of_wrapped(tmp_store: Path) -> None:
    run = Store(tmp_store).run("x" * 90)
    run.create({}, {"signature": "3fa2b1c0", "status": "running"})
    lines = text_of(table(rows([run]), 80), 80).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("xxxx")
    assert "interrupted" in lines[1]


def test_empty_store_shows_only_the_header() -> None:
    assert text_of(table([], 100)).split()[:3] == ["dataset", "arch", "norm"]


def test_details_of_a_finished_run(tmp_store: Path) -> None:
    run = make_run(Store(tmp_store), epochs=7)
    run.save_checkpoint({"w": np.zeros(1000)}, {"epoch": 7})
    run.write_summary(SUMMARY)
    run.update_meta(status="finished", git_folder=None)
    lines = text_of(run_page(run, 100), 300).splitlines()
    text = "\n".join(line.rstrip() for line in lines)
    assert lines[0] == run.name
    for part in (
        "  status  finished",
        f"  folder  {run.path}",
        "  test_acc        94.10%",
        "  wall_seconds    6 min 40 s",
        "  train_loss      0.0123",
        "  parameters      272,474",
        "  images_per_s    1,234\n",
        "  test_loss       –",
        "  dataset    digits  validation=360",
        "  norm       gn_ws  groups=null",
        "  epochs     30",
        "0123456789ab with changes",
        "not a git checkout",
        "python 3.11.7  keras 3.15.1",
        "backend=tensorflow  jit_compile=False",
        "  last  after epoch 7, 8.",
    ):
        assert part in text, part
    epochs = lines[lines.index("last epochs") + 2 : lines.index("config")]
    assert [line.split()[0] for line in epochs] == ["3", "4", "5", "6", "7"]
    assert "12.5 s" in epochs[-1]


def test_details_name_the_owner_the_error_and_the_sessions(tmp_store: Path) -> None:
    run = make_run(Store(tmp_store), epochs=0)
    sessions: list[dict[str, Any]] = [{"from_epoch": 0}, {"from_epoch": 4, "host": "node9"}]
    run.update_meta(sessions=sessions)
    with run.lock(["x"]):
        text = text_of(run_page(run))
        assert "running" in text
        assert f"process {os.getpid()} on " in text
    run.update_meta(status="failed", error={"type": "OOM", "message": "no room\nstack"})
    text = text_of(run_page(run))
    assert "OOM: no room" in text
    assert "2, the last from epoch 4 on node9" in text
    assert "last epochs" not in text


@pytest.mark.parametrize("name", ["config.yaml", "meta.json", "metrics.jsonl", "summary.json"])
def test_details_report_damage_in_place_of_the_data(tmp_store: Path, name: str) -> None:
    run = make_run(Store(tmp_store))
    run.write_summary(SUMMARY)
    (run.path / name).write_bytes(b"{\n{\n{\n")
    text = text_of(run_page(run, 100), 200)
    assert f"cannot read {run.path / name}" in text
    assert ("94.10%" in text) == (name != "summary.json")
    assert ("node7" in text) == (name != "meta.json")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_data_sets_are_listed_with_their_state(width: int) -> None:
    fashion = {
        "name": "fashion_mnist",
        "title": "Fashion-MNIST",
        "train": 60000,
        "test": 10000,
        "shape": (28, 28, 1),
        "classes": 10,
        "state": "missing",
        "where": None,
    }
    digits = {**fashion, "name": "digits", "title": "Digits", "state": "built in"}
    where = Path("/data/tensorflow_datasets/fashion_mnist/3.0.1")
    ready = {**fashion, "state": "ready", "where": where}
    lines = text_of(data.table([digits, fashion, ready], width), width).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    for part in ("fashion_mnist", "60,000", "10,000", "missing"):
        assert part in lines[2]
    assert "built in" in lines[1]
    assert (str(where) in lines[3]) == (width == 120)
    assert ("28×28×1" in lines[1]) == (width >= 80)


HOSTILE = ("[red]x[/]", "[/nope]", ":tada:", "a\x1b[31mb\nc", "$x$ <b>")


def test_names_are_never_interpreted_as_markup(tmp_store: Path) -> None:
    run = make_run(Store(tmp_store))
    config = json.loads(json.dumps(run.config))
    config |= {f"key {name}": name for name in HOSTILE}
    run = Store(tmp_store).run(run.name + "-copy")
    run.create(config, {"status": "running", "command": list(HOSTILE), "host": "[/nope]"})
    shown = text_of(run_page(run), 200)
    for name in HOSTILE:
        printed = name.replace("\x1b", r"\x1b").replace("\n", r"\n")
        assert shown.count(printed) >= 3
    assert "\x1b" not in shown
    row = rows([run], NOW)[0]
    hostile = [{**row, "norm": name, "arch": name} for name in HOSTILE]
    listed = text_of(table(hostile, 160), 160)
    assert "[red]x[/]" in listed
    assert r"a\x1b[31mb\nc" in listed
    assert "\x1b" not in tsv(hostile)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_long_name_does_not_push_out_numbers(tmp_store: Path, width: int) -> None:
    run = make_run(Store(tmp_store))
    row = rows([run], NOW)[0] | {"norm": "n" * 120, "test_acc": 0.94123, "seed": 4294967295}
    shown = text_of(table([row], width), width)
    assert "94.12%" in shown
    assert "4294967295" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_diagnosis_values_stay_visible_next_to_long_names() -> None:
    values = {"l" * 100 + "/" + "q" * 60: 1.2345, "[i]x/[b]": 2.5, "[y]": 3.5}
    lines = [{"checkpoint": "last", "epoch": 3, "probe": "[/p]", "values": values}]
    for width in (40, 80):
        shown = text_of(diagnose.page({"run [/r]": lines}, width), width)
        for text in ("1.2345", "3.5000", "[i]x", "[y]", "[/p]", "run [/r]"):
            assert text in shown
        assert max(map(len, shown.splitlines())) <= width


def test_running_cell_is_shown_under_its_literal_name() -> None:
    row = {"where": "[/gpu]", "name": ":tada: [/x]", "epochs": 3, "epoch": 1}
    shown = text_of(running_table([row], 100), 100)
    assert "[/gpu]" in shown
    assert ":tada: [/x]" in shown


def test_list_marks_trials_of_tuning(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trial, final = make_run(store, "bn"), make_run(store, "gn")
    tuning = StoreTuning((), frozenset({trial.name}), frozenset())
    listed = rows(store.runs(), NOW, tuning)
    assert {row["name"]: row["trial"] for row in listed} == {trial.name: True, final.name: False}
    shown = table(listed, 140)
    assert [str(column.header) for column in shown.columns].count("phase") == 1
    plain = table(rows(store.runs(), NOW), 140)
    assert "phase" not in [str(column.header) for column in plain.columns]
