"""``normbench sweep --tune … --until …`` on the fake engine: trials once, seeds in rounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normbench.cli import main
from normbench.store.store import Store
from normbench.store.tuning import tuning_of
from normbench.sweep.record import records

FAKESWEEP = Path(__file__).with_name("fakesweep.py")
TUNE = ("--tune", "optimizer.lr=0.1,0.2")
UNTIL = ("--until", "0.001", "--max-seeds", "6", "--baseline", "batch=16")


def sweep_command(store: Path, *more: str) -> list[str]:
    """Return a command for two cells of two trials, with 3 to 6 final seeds."""
    return ["sweep", "dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4",
            "norm=bn", "batch=16,32", "epochs=1", "seed=range(0,3)", "executor.workers=2",
            f"store={store}", *more]  # fmt: skip


@pytest.fixture
def run_rounds(tmp_store, faults, capsys):
    """Return a function that runs the command and returns exit code and output."""

    def run(*more: str, tune=TUNE, until=UNTIL):
        code = main(sweep_command(tmp_store, *tune, *until, *more))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def looks_of(store: Store) -> list[dict]:
    return [record.head["until"] for record in records(store) if "until" in record.head]


def results_of(store: Store) -> dict[str, dict]:
    """Return the results of all runs, without their timings."""
    return {
        run.name: {key: value for key, value in run.summary.items() if "second" not in key
                   and not key.endswith("_per_s")}
        for run in store.runs()
    }  # fmt: skip


def test_trials_are_trained_once_and_seeds_are_added(run_rounds, tmp_store, faults):
    store = Store(tmp_store)
    code, out = run_rounds()
    assert code == 0
    assert "trials: 4 runs: 4 to train" in out
    assert "round 3 of at most 3: 6 seeds" in out
    assert len(store.runs()) == 4 + 12
    assert len((faults.folder / "epochs.log").read_text().splitlines()) == 16
    looks = looks_of(store)
    assert [look["seeds"] for look in looks] == [3, 4, 6]
    assert [look["stopped"] for look in looks] == ["", "", "max-seeds"]
    assert [look["comparisons"][0]["n"] for look in looks] == [3, 4, 6]  # trials do not count
    assert [len(cell.final) for cell in tuning_of(store).cells] == [6, 6]
    # The same command shows the last look only.
    code, out = run_rounds()
    assert code == 0
    assert "round 3 of at most 3: 6 seeds" in out
    assert "round 1" not in out
    assert "round 2" not in out
    assert len(looks_of(store)) == 3
    assert len((faults.folder / "epochs.log").read_text().splitlines()) == 16


def test_finished_sweep_continues_when_narrower_intervals_are_requested(run_rounds, tmp_store):
    wide = ("--until", "1000000", *UNTIL[2:])
    assert run_rounds(until=wide)[0] == 0
    assert [look["stopped"] for look in looks_of(Store(tmp_store))] == ["narrow"]
    code, out = run_rounds()
    assert code == 0
    assert "round 1 of at most 3: 3 seeds" in out
    assert len(looks_of(Store(tmp_store))) == 3


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return results and looks of an uninterrupted sweep."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = Store(folder / "runs")
    subprocess.run(
        [sys.executable, str(FAKESWEEP), *sweep_command(store.root, *TUNE, *UNTIL)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return results_of(store), looks_of(store)


@pytest.mark.parametrize(
    ("place", "looks"),
    [
        pytest.param(
            "normbench.sweep.phases:_Recorder.ended 2", 0, id="trials", marks=pytest.mark.slow
        ),
        pytest.param(
            "normbench.sweep.tuned_phases:TunedPhases._train_finals 1", 0, id="after the choice"
        ),
        pytest.param("normbench.sweep.phases:_Recorder.ended 11", 1, id="round 2"),
        pytest.param(
            "normbench.report.rounds:NarrowIntervals.look 1",
            0,
            id="before look 1",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "normbench.report.rounds:NarrowIntervals.look 2",
            1,
            id="before look 2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_sweep_resumes_with_the_same_results(
    run_rounds, run_killed, tmp_store, faults, uninterrupted, place, looks
):
    store = Store(tmp_store)
    run_killed(
        [sys.executable, str(FAKESWEEP), *sweep_command(tmp_store, *TUNE, *UNTIL)],
        {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "FAKE_KILL": place},
    )
    assert len(looks_of(store)) == looks
    finished = {run.name: run.meta for run in store.runs() if run.status == "finished"}
    for run in store.runs():
        if "-s1000-" not in run.name:  # a final run records its trials when it starts
            assert len(run.meta["tuned"]["trials"]) == 2
    code, out = run_rounds()
    assert code == 0, out
    results, expected_looks = uninterrupted
    assert results_of(store) == results
    assert looks_of(store) == expected_looks
    for name, meta in finished.items():
        assert store.run(name).meta["sessions"] == meta["sessions"]  # not trained again
    assert len([record for record in records(store) if "until" in record.head]) == 3


def test_plan_shows_trials_next_round_and_maximum(run_rounds, tmp_store):
    code, out = run_rounds("--dry-run")
    assert code == 0
    assert out.startswith("trials:\n")
    assert "missing      digits-resnet8-bn-b16  optimizer.lr=? seed=0,1,2" in out
    assert "round 1 of at most 3: looks after 3, 4, 6 seeds" in out
    assert "at most 16 runs: 16 to train (4 trials and 12 final)" in out
    assert not list(tmp_store.iterdir())
    run_rounds(until=("--until", "1000000", *UNTIL[2:]))
    code, out = run_rounds("--dry-run")
    assert code == 0
    assert "3 seeds: 0 of 1 intervals are narrower than ±0.001 points" in out
    assert "round 2 of at most 3: looks after 3, 4, 6 seeds" in out
    assert "at most 16 runs: 10 skipped, 6 to train (4 trials and 12 final)" in out
    assert len(looks_of(Store(tmp_store))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"until": (*UNTIL[:3], "9", *UNTIL[4:])}, "looked at these runs with 3 to 6 seeds"),
        (
            {"tune": ("--tune", "optimizer.lr=0.1,0.2,0.4")},
            "looked at these cells tuned with --tune optimizer.lr=0.1,0.2 --tune-seeds 1000",
        ),
        ({"tune": (*TUNE, "--extend", "1")}, "--extend 1: other trials may choose other values"),
    ],
)
def test_changed_schedule_or_tuning_protocol_is_refused(run_rounds, tmp_store, change, message):
    run_rounds(until=("--until", "1000000", *UNTIL[2:]))
    count = len(Store(tmp_store).runs())
    code, out = run_rounds(**change)
    assert code == 2
    assert message in out
    assert len(out.splitlines()) == 1
    assert len(Store(tmp_store).runs()) == count


def test_tuning_seed_of_a_later_round_is_refused_at_the_start(run_rounds, tmp_store):
    code, out = run_rounds("--tune-seeds", "5")
    assert code == 2
    assert "seed 5 is both a tuning seed and a final seed" in out
    assert not list(tmp_store.iterdir())


def test_no_seeds_are_added_while_a_cell_has_no_choice(run_rounds, tmp_store):
    code, out = run_rounds("max_loss=1e-9")
    assert code == 1
    assert "no seeds are added while a cell has no chosen value" in out
    assert looks_of(Store(tmp_store)) == []
