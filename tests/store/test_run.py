"""Damaged run folders: damage is reported, or the run reads exactly as it was written."""

from __future__ import annotations

import json
import logging
import os
import random
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.cli import list as list_command
from normbench.config import SCHEMA, Config, compose
from normbench.errors import UserError
from normbench.report import frames as rows
from normbench.store import run as runfolder
from normbench.store.store import Run, Store, StoreError, note_on_checksums
from normbench.sweep.cell import set_damaged_aside
from normbench.sweep.plan import plan

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
CONFIG = compose(["dataset=digits", "arch=resnet8", "norm=gn", "epochs=3", "label='été'"])
FILES = ("config.yaml", "meta.json", "metrics.jsonl", "summary.json", "diagnosis.jsonl")
SUMMARY = {
    "status": "finished", "epochs": 3, "steps": 30, "images_seen": 480, "train_loss": 0.125,
    "train_acc": 0.5, "val_loss": 0.25, "val_acc": 0.75, "parameters": 78042, "classes": 10,
    "train_seconds": 4.5, "images_per_s": 106.6, "test_loss": 0.3, "test_acc": 0.9611111111111111,
    "best_val_epoch": 3, "best_val_acc": 0.75, "best_val_test_loss": 0.3, "wall_seconds": 9.5,
    "best_val_test_acc": 0.9611111111111111, "weights_sha256": "ab" * 32, "micro_batches": 1,
}  # fmt: skip


def epoch(number: int) -> dict[str, Any]:
    return {
        "epoch": number, "step": 10 * number, "images_seen": 160 * number, "train_loss": 0.125,
        "train_acc": 0.5, "val_loss": 0.25, "val_acc": 0.75, "lr": 0.1, "grad_norm": 1.5,
        "grad_norm_max": None, "images_per_s": 106.6, "train_seconds": 1.5, "eval_seconds": 0.1,
        "time": "2026-11-21T11:00:00Z", "probe/activations/stem.mean": 0.5,
    }  # fmt: skip


def begin_run(root: Path, epochs: int = 3) -> Run:
    """Create an interrupted run."""
    run = Store(root).run(CONFIG)
    meta = {
        "status": "running", "signature": CONFIG.signature, "started": "2026-11-21T10:00:00Z",
        "ended": None, "git": {"commit": "0123456789" * 4, "dirty": False}, "host": "node7",
        "versions": {"python": "3.11.9", "keras": "3.15.1"}, "processor": "x86", "devices": ["C:0"],
        "command": ["normbench", "run", "label=été"], "engine": {"backend": "tensorflow"},
        "micro_batches": [{"epoch": 0, "count": 1}], "error": None,
        "sessions": [{"started": "2026-11-21T10:00:00Z", "ended": None, "host": "node7", "pid": 4,
                      "from_epoch": 0, "seconds": 9.5}],
    }  # fmt: skip
    run.create(
        {**CONFIG.to_dict(), "signature": CONFIG.signature, "schema": SCHEMA, "store": "runs"}, meta
    )
    for number in range(1, epochs + 1):
        run.append_metrics(epoch(number))
    return run


def finish_run(run: Run) -> Run:
    run.write_summary(SUMMARY)
    run.update_meta(status="finished", ended="2026-11-21T11:00:00Z")
    for checkpoint in ("last", "best"):
        run.append_diagnosis(
            {"checkpoint": checkpoint, "epoch": 3, "step": 30, "probe": "sharpness",
             "options": {"images": 100}, "values": {"top": 1.25, "trace": None},
             "time": "2026-11-21T11:30:00Z", "commit": "0123456789" * 4}
        )  # fmt: skip
    run.save_checkpoint({"w": np.zeros(3)}, {"epoch": 3, "step": 30, "best": {"epoch": 3}})
    return run


@pytest.fixture(autouse=True)
def _forget_runs_without_checksums() -> Iterator[None]:
    runfolder.without_checksums.clear()
    yield
    runfolder.without_checksums.clear()


@pytest.fixture
def finished(tmp_store: Path) -> Run:
    return finish_run(begin_run(tmp_store))


def without_checksums(run: Run) -> Run:
    """Rewrite a run's records as an earlier version wrote them, without checksums."""
    for name in ("meta.json", "summary.json"):
        path = run.path / name
        if path.exists():
            record = json.loads(path.read_text())
            del record["checksums"]
            path.write_text(json.dumps(record))
    return run


def read_everything(run: Run) -> dict[str, Any]:
    """Return everything that any of the readers gets from a run."""
    return {
        "status": run.verify(),
        "config": run.config,
        "meta": run.meta,
        "summary": run.summary,
        "metrics": run.metrics(),
        "last": run.last_metrics(),
        "diagnoses": run.diagnoses(),
        "report": rows.read(run),
        "list": list_command.rows([run], NOW),
    }


def mutations(data: bytes, dice: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield pairs of a description and the damaged content of a file."""
    lines = data.splitlines(keepends=True)
    for _ in range(count):
        at = dice.randrange(len(data))
        bit, byte = 1 << dice.randrange(8), dice.randrange(256)
        yield f"bit {bit} at {at}", data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
        yield f"byte {byte} at {at}", data[:at] + bytes([byte]) + data[at + 1 :]
        yield f"byte {byte} into {at}", data[:at] + bytes([byte]) + data[at:]
        yield f"no byte at {at}", data[:at] + data[at + 1 :]
    digits = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
    for at in dice.sample(digits, min(len(digits), count)):
        digit = b"0123456789"[(data[at] - ord("0") + 1 + dice.randrange(9)) % 10]
        yield f"digit {digit} at {at}", data[:at] + bytes([digit]) + data[at + 1 :]
    for at in range(len(lines)):
        yield f"no line {at}", b"".join(lines[:at] + lines[at + 1 :])
        yield f"line {at} twice", b"".join(lines[: at + 1] + lines[at:])
    yield "lines in another order", b"".join(lines[::-1])
    yield "zeros", bytes(len(data))
    yield "nothing", b""


def crash_can_leave(name: str, data: bytes, damaged: bytes) -> bool:
    """Tell whether a torn append explains the damage: complete runs still get diagnoses."""
    if name != "diagnosis.jsonl":
        return False
    lines, remaining = data.splitlines(), damaged.splitlines()
    intact = [line for line in remaining if line in lines]
    return intact == lines[: len(intact)] and len(remaining) - len(intact) <= 1 and (
        len(intact) == len(remaining) or lines[len(intact)].startswith(remaining[-1].rstrip(b"\0"))
    )  # fmt: skip


def error_of(run: Run) -> str:
    """Return the error message of a damaged run, or "" for an intact one."""
    try:
        run.verify()
    except StoreError as error:
        return str(error)
    return ""


def fuzz(run: Run, changed: Callable[[str, bytes], Iterator[tuple[str, bytes]]]) -> int:
    """Assert that every damaged file is named or reads as written; return their number."""
    expected, tried = read_everything(run), 0
    for name in FILES:
        path = run.path / name
        data = path.read_bytes()
        for what, damaged in changed(name, data):
            tried += 1
            path.write_bytes(damaged)
            message = error_of(run)
            assert message == "" or f"{path}: " in message, (name, what, message)
            assert "\n" not in message
            if message or crash_can_leave(name, data, damaged):
                continue
            assert read_everything(run) == expected, (name, what)
        path.write_bytes(data)
    assert read_everything(run) == expected
    return tried


def test_random_damage_to_a_finished_run_is_detected_or_harmless(finished: Run) -> None:
    dice = random.Random(0)
    assert fuzz(finished, lambda name, data: mutations(data, dice, 60)) > 1200


@pytest.mark.slow
def test_every_flipped_bit_of_a_finished_run_is_detected_or_harmless(finished: Run) -> None:
    def every_bit(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
        for at in range(len(data)):
            for bit in range(8):
                flipped = bytes([data[at] ^ (1 << bit)])
                yield f"bit {bit} at {at}", data[:at] + flipped + data[at + 1 :]

    assert fuzz(finished, every_bit) > 30_000


@pytest.mark.parametrize("name", FILES)
def test_every_reader_names_the_damaged_file(finished: Run, name: str) -> None:
    path = finished.path / name
    path.write_bytes(path.read_bytes().replace(b"3", b"4"))
    row, epochs, problem = rows.read(finished)
    assert row is None
    assert epochs == []
    assert (problem or "").count(name) == 1
    if name == "diagnosis.jsonl":
        return  # diagnoses do not affect the status of a run
    (listed,) = list_command.rows([finished], NOW)
    assert listed["status"] == "unreadable"
    assert (listed["dataset"], listed["norm"], listed["batch"]) == ("digits", "gn", 128)
    assert str(path) in listed["problem"]
    (cell,) = plan([CONFIG], Store(finished.path.parent)).cells
    assert (cell.state, cell.todo) == ("unreadable", False)
    assert str(path) in cell.reason
    assert set_damaged_aside(finished, [])
    assert not finished.exists


def test_intact_run_is_not_set_aside(finished: Run) -> None:
    (finished.path / "checkpoint" / "last.npz").write_bytes(b"torn")  # results do not depend on it
    assert not set_damaged_aside(finished, [])
    assert finished.status == "finished"


def test_checksums_match_sha256sum(finished: Run) -> None:
    import hashlib

    written = json.loads((finished.path / "summary.json").read_text())["checksums"]
    for name in ("config.yaml", "metrics.jsonl"):
        assert written[name] == hashlib.sha256((finished.path / name).read_bytes()).hexdigest()
    assert "checksums" not in (finished.summary or {})
    assert "checksums" not in (finished.meta or {})


def test_reformatted_json_is_not_damage(finished: Run) -> None:
    expected = read_everything(finished)
    for name in ("meta.json", "summary.json"):
        path = finished.path / name
        path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_everything(finished) == expected


def test_interrupted_run_is_resumable_with_any_torn_last_line(tmp_store: Path) -> None:
    run = begin_run(tmp_store, 2)
    path = run.path / "metrics.jsonl"
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        assert run.verify() == "interrupted"
    path.write_bytes(content[content.index(b"\n") + 1 :])
    with pytest.raises(StoreError, match=r"metrics\.jsonl: line 1 has epoch 2, not 1"):
        run.verify()


def test_resuming_refuses_rows_changed_before_the_checkpoint(tmp_store: Path) -> None:
    run = begin_run(tmp_store, 2)
    checksum = run.metrics_checksum()
    run.append_metrics(epoch(3))  # after the checkpoint
    path = run.path / "metrics.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"0.125", b"0.126", 1))
    with pytest.raises(StoreError, match=r"metrics\.jsonl: changed since the last checkpoint"):
        run.truncate_metrics(2, checksum)
    path.write_bytes(content)
    run.truncate_metrics(2, checksum)
    assert run.metrics_checksum() == checksum


@pytest.mark.parametrize("after", ["config", "meta", "metrics", "summary"])
def test_crash_between_two_writes_leaves_no_damage(tmp_store: Path, after: str) -> None:
    """The writes come in this order, each durable before the next begins."""
    run = Store(tmp_store).run(CONFIG)
    if after == "config":
        begin_run(tmp_store, 0)
        (run.path / "meta.json").unlink()
        assert run.verify() == "missing"
        begin_run(tmp_store, 3)
    elif after == "meta":
        assert begin_run(tmp_store, 0).verify() == "interrupted"
        begin_run(tmp_store, 3)
    else:
        begin_run(tmp_store, 3)
    if after != "summary":
        assert run.verify() == "interrupted"
    run.write_summary(SUMMARY)
    assert run.verify() == "finished"  # meta.json still says "running"
    run.update_meta(status="finished")
    assert run.verify() == "finished"


def test_lost_checksums_are_not_mistaken_for_an_older_version(
    finished: Run,
) -> None:
    for name in ("meta.json", "summary.json"):
        path = finished.path / name
        text = path.read_text()
        path.write_text(text.replace('"checksums"', '"checksumz"'))
        with pytest.raises(StoreError, match=f"{name}: damaged: its checksums are missing"):
            finished.verify()
        path.write_text(text)


def test_runs_without_checksums_are_read_and_noted_once(tmp_store: Path) -> None:
    assert note_on_checksums() == ""
    run = without_checksums(finish_run(begin_run(tmp_store)))
    assert run.verify() == "finished"
    assert run.verify() == "finished"
    assert note_on_checksums() == (
        "1 complete run has no checksums, because an earlier version wrote them: damage to their "
        f"files may go unnoticed (the run is {run.name})"
    )
    assert note_on_checksums() == ""


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("config.yaml", "seed: 0", "seed: 7", "no longer has the signature"),
        ("config.yaml", f"signature: {CONFIG.signature}", "signature: 0badc0de", "'0badc0de'"),
        ("config.yaml", "batch: ", "patch: ", "no longer has the signature"),
        ("summary.json", '"test_acc": 0.96', '"test_acc": 9.6', "test_acc is 9.6"),
        ("summary.json", '"test_acc"', '"tess_acc"', "summary.json lacks test_acc"),
        ("summary.json", '"epochs": 3', '"epochs": 2', "its last epoch is 3"),
        ("metrics.jsonl", '"val_acc": 0.75', '"val_acc": 0.76', "its last val_acc is 0.76"),
        ("meta.json", '"count": 1', '"count": "x"', "count is 'x', not a whole number"),
    ],
)
def test_without_checksums_ranges_and_consistency_are_checked(
    tmp_store: Path, name: str, old: str, new: str, reason: str
) -> None:
    run = without_checksums(finish_run(begin_run(tmp_store)))
    path = run.path / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(StoreError, match=reason):
        run.verify()


def test_renamed_run_folder_is_refused(finished: Run) -> None:
    other = Run(finished.path.with_name(f"{finished.name[:-8]}0badc0de"))
    finished.path.rename(other.path)
    for run in (other, without_checksums(other)):
        with pytest.raises(StoreError, match=r"its signature is '\w+', the folder's is '0badc0de'"):
            run.verify()


def test_torn_line_of_a_complete_run_is_damage_even_without_checksums(tmp_store: Path) -> None:
    run = without_checksums(finish_run(begin_run(tmp_store)))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tr')
    with pytest.raises(StoreError, match=r"metrics\.jsonl: its last line is torn"):
        run.verify()


def test_started_run_without_config_is_damaged(finished: Run) -> None:
    (finished.path / "config.yaml").unlink()
    with pytest.raises(StoreError, match=r"config\.yaml: no such file, though the run began"):
        finished.verify()


def test_resuming_an_older_run_adds_checksums(tmp_store: Path) -> None:
    without_checksums(begin_run(tmp_store, 1))
    run = begin_run(tmp_store, 0)
    assert "checksums" in json.loads((run.path / "meta.json").read_text())
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("label: été", "label: etc"))
    with pytest.raises(StoreError, match=r"config\.yaml: changed since the run began"):
        run.verify()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("meta.json", b'{"a":' + b"[" * 200_000, "nested too deeply"),
        ("meta.json", b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 levels"),
        ("meta.json", b'{"host": "\\ud800"}', "not valid Unicode text"),
        ("meta.json", b'{"pid": NaN}', "not JSON"),
        ("meta.json", b'{"micro_batches": "x"}', "micro_batches is 'x', not a list"),
        ("summary.json", b'{"status": "finished", "test_acc": -1}', "test_acc is -1"),
        ("summary.json", b'{"status": "diverged", "lr": 1e999}', "lr is inf"),
        ("config.yaml", b"a: " + b"[" * 5000, "config.yaml: "),
        (
            "config.yaml",
            b"a: &a [1,1,1,1,1,1,1,1]\n"
            + b"".join(b"%c: &%c [%b]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 8))
                       for c in range(ord("a"), ord("p"))),
            "its aliases expand to too many values",
        ),
        ("diagnosis.jsonl", b'{"epoch":1,"step":1,"probe":"a","values":[1]}\n', "values is [1]"),
    ],
)  # fmt: skip
def test_hostile_files_are_refused_in_one_line(
    finished: Run, name: str, content: bytes, reason: str
) -> None:
    (finished.path / name).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        finished.verify()
    assert f"{finished.path / name}: " in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_reading_does_not_block_on_a_pipe(finished: Run, name: str) -> None:
    (finished.path / name).unlink()
    os.mkfifo(finished.path / name)
    if name in ("meta.json", "config.yaml"):
        assert not finished.exists
    if name == "summary.json":  # a pipe is no summary: the run did not end
        assert finished.verify() == "interrupted"
        return
    with pytest.raises(StoreError, match=f"{name}: not a regular file"):
        finished.verify()


def test_file_larger_than_memory_is_not_read(finished: Run) -> None:
    os.truncate(finished.path / "metrics.jsonl", 1 << 40)
    with pytest.raises(StoreError, match=r"metrics\.jsonl: it has 1,099,511,627,776 bytes"):
        finished.verify()


@pytest.mark.parametrize("place", ["a full disk", "a folder"])
def test_unwritable_log_is_reported_in_one_line(
    finished: Run, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from normbench.engine.train import _log_to

    if place == "a folder":
        finished.log_path.mkdir()
    else:
        finished.log_path.symlink_to("/dev/full")
    messages: list[str] = []
    log = logging.getLogger("normbench")
    with _log_to(finished, messages.append):
        for number in range(50):
            log.info("line %d", number)
    reason = "Is a directory" if place == "a folder" else "No space left on device"
    assert messages == [
        f"cannot write {finished.log_path}: {reason}; the run continues without a log"
    ]
    assert "Traceback" not in capfd.readouterr().err


def test_log_is_written(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from normbench.engine.train import _log_to

    # pytest-xdist cannot transmit a captured log that contains a lone surrogate.
    monkeypatch.setattr(logging.getLogger("normbench"), "propagate", False)
    with _log_to(finished, lambda text: pytest.fail(text)):
        logging.getLogger("normbench").info("half a character: \udcff")
    assert finished.log_path.read_text().endswith("INFO half a character: \\udcff\n")


def test_damaged_lock_json_is_an_unknown_owner(finished: Run) -> None:
    with finished.lock(["me"]):
        for content in ("{", "[]", '{"pid": "x"}', '{"command": 5}', '{"host": "\\ud800"}'):
            (finished.path / "lock.json").write_text(content)
            assert finished.owner == {}


def test_non_utf_8_arguments_are_recorded(tmp_store: Path) -> None:
    run = Store(tmp_store).run(CONFIG)
    with run.lock(["normbench", "\udcff"]):
        run.create(
            {**CONFIG.to_dict(), "signature": CONFIG.signature},
            {"status": "running", "host": socket.gethostname(), "command": ["\udcff"]},
        )
        assert (run.meta or {})["command"] == ["\\udcff"]
        assert (run.owner or {})["command"] == ["normbench", "\\udcff"]
    other = Store(tmp_store).run("other")
    with pytest.raises(UserError, match=r"label is .*udcff', not valid Unicode text"):
        other.create({"label": "\udcff", "signature": "0badc0de"}, {})


def test_signatures_from_before_1_0_equaled_1_are_accepted(tmp_store: Path) -> None:
    """Earlier versions hashed the options of a user's class differently."""
    norm = {"name": "mine", "_target_": "my_package.MyNorm", "scale": 1.0}
    config = Config.from_dict({**CONFIG.to_dict(), "norm": {"weight": {"name": "none"}, **norm}})
    assert config.earlier_signature != config.signature
    for signature in (config.earlier_signature, config.signature):
        run = Store(tmp_store).run(f"digits-resnet8-mine-b128-s0-{signature}")
        run.create({**config.to_dict(), "signature": signature}, {"status": "failed"})
        assert without_checksums(run).verify() == "failed"
