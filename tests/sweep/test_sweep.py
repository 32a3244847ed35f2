"""Complete sweeps through the command line's functions, on workers of the fake engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from normbench.cli import main
from normbench.cli.sweep_screen import SweepScreen
from normbench.cli.sweep_status import show_status
from normbench.errors import UserError
from normbench.store.store import Store
from normbench.sweep.record import find, records
from normbench.sweep.sweep import sweep
from tests.marks import slow_except
from tests.waiting import wait_until

FAKESWEEP = Path(__file__).with_name("fakesweep.py")


@pytest.fixture
def overrides(tmp_store):
    return ["dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4", "norm=bn",
            "batch=16", "epochs=3", f"store={tmp_store}"]  # fmt: skip


@pytest.fixture
def run_sweep(overrides, tmp_store, faults):
    """Return a function that sweeps and returns the result, the lines and the other output."""

    class Screen(SweepScreen):
        def __init__(self):
            null = Path(os.devnull).open("w")  # noqa: SIM115
            super().__init__(Console(file=null, width=160, record=True))
            self.lines: list[str] = []

        def line(self, text):
            self.lines.append(text)

    def run(*more, **options):
        screen = Screen()
        command = ["normbench", "sweep", *more]
        result = sweep([*overrides, *more], command, view=screen, **options)
        return result, screen.lines, screen.console.export_text()

    return run


def test_sweep_trains_records_and_skips(run_sweep, tmp_store):
    outcome, lines, screen = run_sweep("seed=range(0,3)", "executor.workers=2")
    assert outcome.exit_code == 0
    assert lines[0].startswith("3 runs: 3 to train; duration unknown")
    assert lines[-1] == "3 runs: 3 trained"
    assert screen.count("trained") == 3
    assert "[3/3]" in screen
    (record,) = records(Store(tmp_store))
    head = record.head
    assert head["command"] == ["normbench", "sweep", "seed=range(0,3)", "executor.workers=2"]
    assert head["executor"]["workers"] == 2
    assert head["result"] == "complete"
    assert head["ended"]
    assert [cell["state"] for cell in head["cells"]] == ["missing"] * 3
    assert {name: cell_result.result for name, cell_result in record.results.items()} == {
        cell["name"]: "trained" for cell in head["cells"]
    }
    assert Store(tmp_store).foreign() == []
    again, lines, _ = run_sweep("seed=range(0,4)")
    assert lines[-1] == "4 runs: 1 trained, 3 skipped"
    assert lines[0].startswith("4 runs: 3 skipped, 1 to train; about ")
    assert again.exit_code == 0
    _, lines, _ = run_sweep("seed=range(0,4)")
    assert lines == ["4 runs: 4 skipped"]
    assert len(records(Store(tmp_store))) == 2  # a sweep with nothing to do is not recorded


def test_again_sets_all_cells_aside_and_retrains_them(run_sweep, tmp_store):
    run_sweep("seed=range(0,2)")
    store = Store(tmp_store)
    before = {run.name: run.meta["started"] for run in store.runs()}
    outcome, lines, screen = run_sweep("seed=range(0,3)", again=True, dry_run=True)
    assert [cell.state for cell in outcome.plan.cells] == ["missing"] * 3
    assert screen.count("finished, to be set aside") == 2
    assert not list(tmp_store.glob(".*replaced*"))
    outcome, lines, _ = run_sweep("seed=range(0,3)", again=True)
    assert f"2 runs are set aside in {tmp_store}, as .NAME.replaced-TIME" in lines
    assert lines[-1] == "3 runs: 3 trained"
    asides = list(tmp_store.glob(".*.replaced-*"))
    assert sorted(path.name[1:].partition(".replaced")[0] for path in asides) == sorted(before)
    assert all((path / "summary.json").is_file() for path in asides)
    assert store.foreign() == []
    _, lines, _ = run_sweep("seed=range(0,3)")
    assert lines == ["3 runs: 3 skipped"]


def test_failed_cells_are_reported_and_retried_only_on_request(run_sweep, faults, tmp_store):
    first = run_sweep("seed=range(0,2)", dry_run=True)[0].plan.cells[0].name
    faults(first, "raise")
    outcome, lines, screen = run_sweep("seed=range(0,2)")
    assert outcome.exit_code == 1
    assert lines[-1] == "2 runs: 1 trained, 1 failed"
    assert "RuntimeError: something broke" in screen
    assert "in two lines" in screen  # the log's last lines
    assert "--retry-failed" in screen
    assert find(Store(tmp_store), None).head["result"] == "failed"
    outcome, lines, _ = run_sweep("seed=range(0,2)")
    assert lines == ["2 runs: 1 skipped, 1 failed"]
    assert outcome.exit_code == 1
    outcome, lines, _ = run_sweep("seed=range(0,2)", retry_failed=True)
    assert lines[-1] == "2 runs: 1 trained, 1 skipped"
    assert outcome.exit_code == 0


def test_damaged_run_is_set_aside_and_retrained_on_request(run_sweep, tmp_store):
    run_sweep("seed=0,1")
    run = Store(tmp_store).runs()[0]
    expected = run.summary["weights_sha256"]
    (run.path / "summary.json").unlink()
    (run.path / "checkpoint" / "last.npz").write_bytes(b"torn")
    outcome, lines, _ = run_sweep("seed=0,1")
    assert outcome.exit_code == 1
    assert "last.npz" in next(iter(outcome.failed.values())).error
    outcome, lines, _ = run_sweep("seed=0,1", retry_failed=True)
    assert lines[-1] == "2 runs: 1 trained, 1 skipped"
    assert run.summary["weights_sha256"] == expected
    aside = list(tmp_store.glob(".*.damaged-*"))
    assert len(aside) == 1
    assert (aside[0] / "checkpoint" / "last.npz").read_bytes() == b"torn"
    assert len(Store(tmp_store).runs()) == 2


def test_damaged_run_without_a_recorded_failure_is_retrained_too(run_sweep, tmp_store):
    run_sweep("seed=0,1")
    run = Store(tmp_store).runs()[0]
    expected = run.summary["weights_sha256"]
    (run.path / "summary.json").unlink()
    run.update_meta(status="running", ended=None)
    (run.path / "config.yaml").write_bytes(b"\x00{torn")
    outcome, _, _ = run_sweep("seed=0,1", retry_failed=True)
    assert outcome.exit_code == 0
    assert run.summary["weights_sha256"] == expected


def test_invalid_cells_are_found_before_training_starts(run_sweep, tmp_store, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "1")
    with pytest.raises(UserError, match="1 run cannot be trained: --skip-invalid"):
        run_sweep("batch=16,161")
    assert Store(tmp_store).runs() == []
    outcome, lines, _ = run_sweep("batch=16,161", skip_invalid=True)
    assert "batch=161 is larger than the training set" in lines[0]
    assert lines[-1] == "2 runs: 1 trained, 1 invalid"
    assert outcome.exit_code == 0


def test_sweep_without_valid_cells_is_refused_in_one_line(run_sweep, tmp_store, monkeypatch):
    monkeypatch.setenv("FAKE_REFUSE", "1")
    with pytest.raises(UserError, match=r"^2 runs cannot be trained: seed 1 is refused$"):
        run_sweep("batch=16,32", "seed=1")
    outcome, lines, _ = run_sweep("batch=16,32", "seed=1", skip_invalid=True)
    assert outcome.exit_code == 0
    assert [line.split()[0] for line in lines[:2]] == ["invalid", "invalid"]
    assert lines[-1] == "2 runs: 2 invalid"


def test_dry_run_shows_states_and_time_and_writes_nothing(run_sweep, tmp_store):
    run_sweep("seed=0")
    before = sorted(tmp_store.rglob("*"))
    outcome, lines, screen = run_sweep("seed=0,1", "batch=16,161", dry_run=True)
    assert lines == []
    assert outcome.exit_code == 0
    rows = screen.splitlines()
    assert rows[0].startswith("finished")
    assert rows[1].startswith("invalid")
    assert "batch=161 is larger" in rows[1]
    assert rows[2].startswith("missing")
    assert "about" in rows[2]
    assert rows[-1].startswith("4 runs: 1 skipped, ")
    assert sorted(tmp_store.rglob("*")) == before


def test_sweep_takes_one_executor(run_sweep):
    with pytest.raises(UserError, match="one executor"):
        run_sweep("executor=local,inline")
    with pytest.raises(UserError, match="unknown executor 'lokal': did you mean 'local'"):
        run_sweep("executor=lokal")
    with pytest.raises(UserError, match="unknown option of executor=local 'worker': did you mean"):
        run_sweep("executor.worker=2")


def start(overrides, *more, step_seconds=0.002):
    return subprocess.Popen(
        [sys.executable, str(FAKESWEEP), "sweep", *overrides, *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]),
             "FAKE_STEP_SECONDS": str(step_seconds)},
    )  # fmt: skip


def are_training(store, count=1):
    """Return whether ``count`` runs have a second row, hence a checkpoint of the first epoch."""
    return sum((run.last_metrics() or {}).get("epoch", 0) > 1 for run in store.runs()) >= count


@pytest.mark.parametrize(
    "number",
    slow_except([signal.SIGINT, signal.SIGKILL], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]),
)
def test_stopped_sweep_resumes_when_restarted(overrides, faults, tmp_store, number):
    store, grid = Store(tmp_store), ("seed=range(0,3)", "epochs=16", "executor.workers=2")
    # Slow steps: no run can end while the other run's worker is still starting.
    process = start(overrides, *grid, step_seconds=0.05)
    wait_until(lambda: are_training(store, 2))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    record = records(store)[-1]
    if number != signal.SIGKILL:
        assert process.returncode == 130, output
        assert "2 interrupted, 1 to train" in output
        assert "run the same command again to resume" in output
        assert record.head["result"] == "interrupted"
    else:
        assert record.head["result"] is None
    # Workers end on their own.
    wait_until(lambda: not any(run.status == "running" for run in store.runs()))
    assert not record.goes_on
    assert {run.status for run in store.runs()} == {"interrupted"}
    process = start(overrides, *grid, step_seconds=0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "2 to resume" in output
    assert {run.status for run in store.runs()} == {"finished"}
    resumed = [run for run in store.runs() if len(run.meta["sessions"]) == 2]
    assert len(resumed) == 2
    assert all(run.meta["sessions"][1]["from_epoch"] > 0 for run in resumed)


def test_two_concurrent_sweeps_train_each_cell_once(overrides, faults, tmp_store):
    grid = ("seed=range(0,4)", "epochs=20", "executor.workers=1")
    both = [start(overrides, *grid) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    epochs = [line.rsplit(" ", 1)[0] for line in
              (faults.folder / "epochs.log").read_text().splitlines()]  # fmt: skip
    assert len(epochs) == len(set(epochs)) == 4 * 20
    assert {run.status for run in Store(tmp_store).runs()} == {"finished"}


def test_status_needs_only_the_store(overrides, faults, tmp_store, capsys, run_sweep):
    store = Store(tmp_store)
    process = start(overrides, "seed=range(0,4)", "epochs=400", "executor.workers=1")
    wait_until(lambda: are_training(store))
    console = Console(file=Path(os.devnull).open("w"), width=200, record=True)  # noqa: SIM115
    assert show_status(store, None, console) == 0
    text = console.export_text()
    assert "in progress, started" in text
    assert "4 runs: 1 running, 3 waiting" in text
    assert "/400" in text
    process.kill()
    process.communicate()
    wait_until(lambda: not any(run.status == "running" for run in store.runs()))
    assert main(["sweep", "status", "--store", str(tmp_store)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "interrupted: its process is gone" in shown
    assert "1 interrupted, 3 waiting" in shown


def test_status_shows_the_named_sweep_or_reports_an_unknown_one(tmp_store, run_sweep, capsys):
    assert main(["sweep", "status", "--store", str(tmp_store)]) == 2
    assert "no record of a sweep" in capsys.readouterr().err
    run_sweep("seed=0")
    run_sweep("seed=1")
    first, second = records(Store(tmp_store))
    assert find(Store(tmp_store), None).name == second.name
    assert find(Store(tmp_store), first.name).name == first.name
    assert main(["sweep", "status", "nope", "--store", str(tmp_store)]) == 2
    assert "unknown sweep 'nope'" in capsys.readouterr().err


def test_full_disk_leaves_every_folder_readable(run_sweep, overrides, tmp_store, monkeypatch):
    """Writes fail from a run's second checkpoint on, as on a full disk."""
    monkeypatch.setenv("FAKE_DISK_AFTER", "2")
    outcome, _, screen = run_sweep("seed=range(0,4)", "executor.workers=1")
    assert outcome.exit_code == 1
    assert len(outcome.failed) == 1
    assert next(iter(outcome.failed.values())).cause == "disk"
    assert "No space left on device" in next(iter(outcome.failed.values())).error
    assert "no more runs are started" in screen
    for run in Store(tmp_store).runs():
        assert run.status in ("failed", "interrupted")
        assert run.load_checkpoint() is not None
        run.metrics()
    monkeypatch.delenv("FAKE_DISK_AFTER")
    outcome, _, _ = run_sweep("seed=range(0,4)", retry_failed=True)
    assert outcome.exit_code == 0
    assert {run.status for run in Store(tmp_store).runs()} == {"finished"}


def test_sweep_continues_when_its_record_cannot_be_written(run_sweep, tmp_store, monkeypatch):
    from normbench.store.files import StoreError
    from normbench.sweep.record import Record

    def refuse(self, *arguments):
        raise StoreError("no space")

    monkeypatch.setattr(Record, "ended", refuse)
    outcome, _, screen = run_sweep("seed=range(0,2)")
    assert outcome.exit_code == 0
    assert screen.count("the sweep's record is incomplete: no space") == 2


def test_outcome_lines_are_strict_json(run_sweep, tmp_store):
    run_sweep("seed=0")
    (record,) = records(Store(tmp_store))
    (row,) = [json.loads(line) for line in (record.path / "outcome.jsonl").open()]
    assert row["result"] == "trained"
    assert row["tries"] == 1
