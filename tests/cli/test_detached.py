"""Detached sweeps, and following them from another terminal."""

from __future__ import annotations

import pytest

from normbench.cli import main
from normbench.cli.detached import LOGS
from normbench.store.store import Store

SWEEP = (
    *("norm=bn,ln", "batch=32", "seed=0", "epochs=1", "executor=inline"),
    *("dataset=digits", "dataset.train_size=200", "arch=mlp_sigmoid"),
)


def test_detached_sweep_trains_to_completion(tmp_path, capsys):
    store = ("--store", str(tmp_path))
    assert main(["sweep", *SWEEP, *store, "--detach"]) == 0
    output = capsys.readouterr().out
    name = output.split()[1]
    assert f"sweep {name} runs in process " in output
    assert f"normbench sweep status {name} " in output
    assert main(["sweep", "status", name, *store, "--watch"]) == 0  # waits for its end
    shown = capsys.readouterr().out
    assert "2 runs: 2 finished" in shown
    assert "--detach" not in shown
    assert [run.status for run in Store(tmp_path).runs()] == ["finished", "finished"]
    [log] = (tmp_path / LOGS).iterdir()
    assert "2 trained" in log.read_text()
    assert main(["sweep", "status", "--all", *store]) == 0
    assert name in capsys.readouterr().out


def test_detached_sweep_that_cannot_start_says_why_and_leaves_no_log(tmp_path, capsys):
    assert main(["sweep", *SWEEP, "norm=bm", "--store", str(tmp_path), "--detach"]) == 2
    assert "did you mean" in capsys.readouterr().out
    assert not list((tmp_path / LOGS).iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([*SWEEP, "--detach", "--dry-run"], "leave out --detach"),
        ([*SWEEP, "--watch"], "--watch is for sweep status"),
        ([*SWEEP, "--all"], "--all is for sweep status"),
        (["status", "--detach"], "leave out --detach"),
        (["status", "--all", "--watch"], "leave out the name and --watch"),
    ],
)
def test_conflicting_options_are_refused(words, line, tmp_path, capsys):
    assert main(["sweep", *words, "--store", str(tmp_path)]) == 2
    assert line in capsys.readouterr().err
