"""``normbench sweep --until`` on the fake engine: rounds, looks, resuming, and bad input."""

from __future__ import annotations

import json

import pytest

from normbench.cli import main
from normbench.report.frames import load
from normbench.report.grid import build
from normbench.report.metrics import METRICS
from normbench.report.study import studies
from normbench.store.store import Store
from normbench.sweep.record import records

BASELINE = ["--baseline", "optimizer.lr=0.1"]


@pytest.fixture
def sweep_until(tmp_store, faults, capsys):
    """Return a function that sweeps two learning rates and returns exit code and output."""

    def run(*words: str, seeds: str = "seed=range(0,3)", rates: str = "optimizer.lr=0.1,0.3"):
        command = ["sweep", "dataset=digits", "dataset.train_size=160", "arch=resnet8"]
        command += ["arch.width=4", "batch=16", "epochs=1", "executor.workers=2"]
        command += ["norm=bn", f"store={tmp_store}", seeds, rates, *words]
        code = main(command)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    run.store = Store(tmp_store)
    run.epochs = lambda: (faults.folder / "epochs.log").read_text().splitlines()
    return run


def looks_of(store: Store) -> list[dict]:
    return [record.head["until"] for record in records(store) if "until" in record.head]


def test_wide_intervals_add_seeds_up_to_max_seeds(sweep_until) -> None:
    code, out = sweep_until("--until", "0.001", "--max-seeds", "6", *BASELINE)
    assert code == 0
    assert "--max-seeds is reached" in out
    assert len(sweep_until.store.runs()) == 12
    assert len(sweep_until.epochs()) == 12  # no run was trained twice
    looks = looks_of(sweep_until.store)
    assert [look["seeds"] for look in looks] == [3, 4, 6]
    assert {tuple(look["looks"]) for look in looks} == {(3, 4, 6)}
    assert [look["stopped"] for look in looks] == ["", "", "max-seeds"]
    assert {run.config["seed"] for run in sweep_until.store.runs()} == set(range(6))


def test_narrow_intervals_end_the_sweep_after_one_round(sweep_until) -> None:
    code, out = sweep_until("--until", "1000000", "--max-seeds", "6", *BASELINE)
    assert code == 0
    assert "1 of 1 intervals are narrower than ±1e+06 points" in out
    assert len(sweep_until.store.runs()) == 6
    assert [look["stopped"] for look in looks_of(sweep_until.store)] == ["narrow"]


def test_report_has_the_interval_of_the_last_look(sweep_until) -> None:
    sweep_until("--until", "0.001", "--max-seeds", "6", *BASELINE)
    last = looks_of(sweep_until.store)[-1]["comparisons"][0]
    (study,) = studies(load(sweep_until.store), ("optimizer.lr", "batch"))
    interval = build(study, METRICS["test_acc"], 0.1).cells[0.3, 16].baseline
    assert interval is not None
    assert interval.looks == 3
    assert last["half_width"] == pytest.approx(100 * interval.half_width, rel=1e-12)
    assert last["n"] == interval.n == 6


def test_report_states_the_number_of_looks(sweep_until, tmp_path, capsys, monkeypatch) -> None:
    # The other figures take seconds.
    monkeypatch.setattr("normbench.report.figures.FIGURES", ("heatmap",))
    sweep_until("--until", "0.001", "--max-seeds", "6", *BASELINE)
    words = ["--by", "optimizer.lr,batch", "--baseline", "0.1", "--out", str(tmp_path / "report")]
    assert main(["report", str(sweep_until.store.root), *words]) == 0
    capsys.readouterr()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "with looks declared after 3, 4, 6 seeds" in text
    assert "level 1 − 0.05/3" in text


def test_store_without_looks_has_ordinary_intervals(sweep_until) -> None:
    sweep_until()
    assert "looks" not in load(sweep_until.store).runs
    (study,) = studies(load(sweep_until.store), ("optimizer.lr", "batch"))
    interval = build(study, METRICS["test_acc"], 0.1).cells[0.3, 16].baseline
    assert interval is not None
    assert interval.looks == 1


def test_same_command_continues_from_its_last_look(sweep_until) -> None:
    command = ("--max-seeds", "6", *BASELINE)
    sweep_until("--until", "1000000", *command)
    code, out = sweep_until("--until", "0.001", *command)
    assert code == 0
    assert len(sweep_until.epochs()) == 12
    assert "round 1 of at most 3: 3 seeds" in out
    code, out = sweep_until("--until", "0.001", *command)
    assert code == 0
    assert len(sweep_until.epochs()) == 12
    assert "round 3 of at most 3: 6 seeds" in out
    assert "round 1" not in out


def test_failed_run_stops_the_rounds(sweep_until, faults) -> None:
    sweep_until("--dry-run")
    code, out = sweep_until()
    name = sorted(run.name for run in sweep_until.store.runs())[0]
    for path in (sweep_until.store.root / name).iterdir():
        if path.is_file():
            path.unlink()
    (sweep_until.store.root / name).rmdir() if not any(
        (sweep_until.store.root / name).iterdir()
    ) else None
    faults(name, "raise", count=9)
    code, out = sweep_until("--until", "0.001", "--max-seeds", "6", *BASELINE)
    assert code == 1
    assert "no seeds are added while runs have failed" in out
    assert looks_of(sweep_until.store) == []


def test_plan_shows_the_first_round_and_the_maximum(sweep_until) -> None:
    code, out = sweep_until("--until", "1", "--max-seeds", "6", *BASELINE, "--dry-run")
    assert code == 0
    assert "6 runs: 6 to train" in out
    assert "round 1 of at most 3: looks after 3, 4, 6 seeds" in out
    assert "at most 12 runs: 12 to train" in out
    assert not sweep_until.store.runs()


def test_status_says_why_the_sweep_stopped(sweep_until, capsys) -> None:
    sweep_until("--until", "1000000", "--max-seeds", "6", *BASELINE)
    assert main(["sweep", "status", "--store", str(sweep_until.store.root)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "look 1 of 3, 3 seeds: 1 of 1 intervals" in text
    assert "no more seeds are needed" in text


def test_another_schedule_of_looks_at_the_same_runs_is_refused(sweep_until) -> None:
    sweep_until("--until", "1000000", "--max-seeds", "6", *BASELINE)
    code, out = sweep_until("--until", "1", "--max-seeds", "9", *BASELINE)
    assert code == 2
    assert "has looked at these runs with 3 to 6 seeds declared" in out
    assert len(sweep_until.store.runs()) == 6


def test_damaged_record_is_named(sweep_until, capsys) -> None:
    sweep_until("--until", "1000000", "--max-seeds", "6", *BASELINE)
    path = records(sweep_until.store)[-1].path / "sweep.json"
    head = json.loads(path.read_text())
    path.write_text(json.dumps({**head, "until": {"looks": "six"}}))
    assert main(["report", str(sweep_until.store.root)]) != 0
    assert "sweep.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["--until", "0", *BASELINE], {}, "--until must be a number above 0, got 0"),
        (["--until", "-1", *BASELINE], {}, "--until must be a number above 0, got -1"),
        (["--until", "nan", *BASELINE], {}, "--until must be a number above 0, got nan"),
        (["--until", "1", "--max-seeds", "2", *BASELINE], {}, "--max-seeds 2 is below the 3 seeds"),
        (["--until", "1"], {}, "--until compares with a baseline: bn is the only row"),
        (["--until", "1", "--baseline", "optimizer.lr=0.2"], {}, "unknown baseline of --until"),
        (["--until", "1", "--baseline", "optimiser.lr=1"], {}, "did you mean 'optimizer.lr'"),
        (["--until", "1", *BASELINE], {"seeds": "seed=0"}, "needs at least two seeds"),
        (["--until", "1", *BASELINE, "--again"], {}, "leave out --again"),
        (["--max-seeds", "5"], {}, "--max-seeds requires --until"),
        (["--baseline", "bn"], {}, "--baseline requires --until"),
    ],
)
def test_bad_options_are_refused_in_one_line(sweep_until, words, options, message) -> None:
    code, out = sweep_until(*words, **options)
    assert code == 2
    assert message in out
    assert len(out.splitlines()) == 1
    assert not sweep_until.store.runs()
