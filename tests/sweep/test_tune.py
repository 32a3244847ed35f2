"""Tuning in a sweep: its trials, the choice among them, and that none is trained twice."""

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
from normbench.cli.sweep_status import show_status
from normbench.config import SCHEMA
from normbench.errors import UserError
from normbench.store.store import Store
from normbench.store.tuning import tuning_of, tunings
from normbench.sweep.axis import Axis
from normbench.sweep.record import records
from normbench.sweep.sweep import sweep
from normbench.sweep.tune import TuneMetric, TuneOptions, Tuner
from tests.waiting import wait_until

FAKESWEEP = Path(__file__).with_name("fakesweep.py")


@pytest.fixture
def base(tmp_store):
    return ["dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4",
            "batch=16", "epochs=3", f"store={tmp_store}"]  # fmt: skip


@pytest.fixture
def tuner(base):
    """Return a function that makes a tuner, by default with one cell."""

    def make(*keys: str, grid=("norm=bn", "seed=0,1"), **options) -> Tuner:
        return Tuner([[*base, *grid]], TuneOptions(list(keys), **options))

    return make


def write_result(store: Store, config, result: float | str) -> None:
    """Write a run to the store that ended with a validation accuracy, or with a status."""
    run = store.run(config)
    with run.lock(["test"]):
        run.create(
            {**config.to_dict(), "signature": config.signature, "schema": SCHEMA},
            {"status": result if result == "failed" else "running", "error": None},
        )
        if result == "diverged":
            run.write_summary({"status": "diverged"})
        elif result != "failed":
            numbers = dict.fromkeys(("train_acc", "test_acc"), 0.5)
            run.write_summary(
                {"status": "finished", "train_loss": 1.0, "val_acc": result,
                 "val_loss": 1 - result, **numbers}
            )  # fmt: skip


def choose(tuner: Tuner, store: Path, results):
    """Write trials with these results, in the order of the values; return the cell's record."""
    (cell,) = tuner.cells
    for config, result in zip(tuner.trial_configs(cell), results, strict=True):
        write_result(Store(store), config, result)
    tuner.assess(Store(store))
    return cell.record


# --- the trials -----------------------------------------------------------------------------------


def test_each_value_has_one_trial_per_tuning_seed(tuner):
    tuned = tuner("optimizer.lr=0.2,0.1", grid=["norm=bn,gn", "seed=0,1"], seeds="7,8", epochs=2)
    assert [cell.name for cell in tuned.cells] == ["digits-resnet8-bn-b16", "digits-resnet8-gn-b16"]
    configs = tuned.trial_configs(tuned.cells[1])
    assert [(c.norm_name, c.optimizer["lr"], c.seed, c.epochs) for c in configs] == [
        ("gn", 0.1, 7, 2), ("gn", 0.1, 8, 2), ("gn", 0.2, 7, 2), ("gn", 0.2, 8, 2)
    ]  # fmt: skip
    assert [(c.seed, c.epochs) for c in tuned.final_configs(tuned.cells[1])] == [(0, 3), (1, 3)]
    assert tuner("optimizer.lr=0.2,0.1").trial_configs(tuner("optimizer.lr=1,2").cells[0])


def test_trial_is_an_ordinary_run(tuner, base):
    from normbench.sweep.grid import expand

    trials = tuner("optimizer.lr=log(0.1,0.4,3)").trial_configs(tuner("optimizer.lr=1,2").cells[0])
    plain = expand([*base, "norm=bn", "seed=1000", "optimizer.lr=1,2"])
    assert [config.run_name for config in trials] == [config.run_name for config in plain]


def test_several_keys_are_tried_in_all_combinations(tuner):
    tuned = tuner("optimizer.lr=0.1,0.2", "optimizer.weight_decay=0,0.1")
    assert tuned.cells[0].combinations == [
        {"optimizer.lr": 0.1, "optimizer.weight_decay": 0},
        {"optimizer.lr": 0.1, "optimizer.weight_decay": 0.1},
        {"optimizer.lr": 0.2, "optimizer.weight_decay": 0},
        {"optimizer.lr": 0.2, "optimizer.weight_decay": 0.1},
    ]


def test_config_group_can_be_tuned(tuner, tmp_store):
    tuned = tuner("optimizer=sgd,adamw")
    assert [c.optimizer["name"] for c in tuned.trial_configs(tuned.cells[0])] == ["sgd", "adamw"]
    record = choose(tuned, tmp_store, [0.1, 0.2])
    assert (record.chosen, record.edges) == ({"optimizer": "adamw"}, {})


# --- the choice -----------------------------------------------------------------------------------


def test_the_best_mean_over_the_tuning_seeds_is_chosen(tuner, tmp_store):
    record = choose(tuner("optimizer.lr=0.1,0.2,0.4", seeds="7,8"), tmp_store,
                    [0.1, 0.5, 0.45, 0.4, 0.6, 0.0])  # fmt: skip
    assert record.means == pytest.approx((0.3, 0.425, 0.3))
    assert (record.chosen, record.edges, record.problem) == ({"optimizer.lr": 0.2}, {}, "")
    assert [trial.metric for trial in record.trials] == [0.1, 0.5, 0.45, 0.4, 0.6, 0.0]
    assert len(record.final) == 2


def test_ties_go_to_the_smallest_value(tuner, tmp_store):
    record = choose(tuner("optimizer.lr=0.4,0.1,0.2"), tmp_store, [0.3, 0.5, 0.5])
    assert record.chosen == {"optimizer.lr": 0.2}


def test_lower_loss_is_better(tuner, tmp_store):
    metric = TuneMetric("val_loss", "validation loss", False, lambda row: row.get("val_loss"))
    record = choose(tuner("optimizer.lr=0.1,0.2", metric=metric), tmp_store, [0.3, 0.5])
    assert record.chosen == {"optimizer.lr": 0.2}
    assert record.means == (0.7, 0.5)


def test_value_with_a_diverged_trial_is_not_chosen(tuner, tmp_store):
    record = choose(tuner("optimizer.lr=0.1,0.2,0.4", seeds="7,8"), tmp_store,
                    [0.1, 0.1, 0.2, 0.2, 0.9, "diverged"])  # fmt: skip
    assert record.chosen == {"optimizer.lr": 0.2}
    assert record.means == (0.1, 0.2, None)
    assert record.edges == {}  # a larger one was tried, and diverged


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        (["diverged", "diverged"], "no value is left to choose: of 2 trials, 2 diverged"),
        ([0.1, "failed"], "1 trial has failed, the first is digits-resnet8-bn-b16-s1000-"),
    ],
)
def test_cell_without_a_choice_says_why(tuner, tmp_store, results, problem):
    record = choose(tuner("optimizer.lr=0.1,0.2"), tmp_store, results)
    assert record.chosen is None
    assert record.problem.startswith(problem)
    assert record.final == ()


def test_unfinished_trials_give_no_choice(tuner, tmp_store):
    tuned = tuner("optimizer.lr=0.1,0.2")
    write_result(Store(tmp_store), tuned.trial_configs(tuned.cells[0])[0], 0.9)
    tuned.assess(Store(tmp_store))
    assert tuned.cells[0].record.problem == "1 of 2 trials to be trained"


# --- further values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "edge", "following"),
    [
        ([0.025, 0.05, 0.1], "largest", 0.2),
        ([0.025, 0.05, 0.1], "smallest", 0.0125),
        ([0.01, 0.0215, 0.0464, 0.1], "largest", 0.215),  # rounded by log()
        ([0.1, 0.2], "largest", 0.4),
        ([0.1, 0.2, 0.3], "largest", 0.4),
        ([0.1, 0.2, 0.3], "smallest", None),  # a learning rate of 0 is not tried
        ([0.0, 0.1], "largest", 0.2),
        ([2, 4, 8], "largest", 16),
        ([2, 4, 8], "smallest", 1),
        ([1, 2, 4], "smallest", None),
        ([0.0, 0.0001, 0.0005], "largest", None),
        (["cosine", "step"], "largest", None),
    ],
)
def test_list_is_extended_by_its_own_step(values, edge, following):
    assert Axis("key", [None] * len(values), values).beyond(edge) == following


def test_list_is_extended_until_the_best_value_is_inside(tuner, tmp_store):
    tuned = tuner("optimizer.lr=0.1,0.2", extend=3)
    (cell,) = tuned.cells
    accuracy = {0.1: 0.1, 0.2: 0.2, 0.4: 0.3, 0.8: 0.25}
    added = []
    while True:
        for config in tuned.trial_configs(cell):
            if Store(tmp_store).run(config).status == "missing":
                added.append(config.optimizer["lr"])
                write_result(Store(tmp_store), config, accuracy[config.optimizer["lr"]])
        tuned.assess(Store(tmp_store))
        if not tuned.extend():
            break
    assert added == [0.1, 0.2, 0.4, 0.8]
    assert cell.record.chosen == {"optimizer.lr": 0.4}
    assert cell.record.added == ({"optimizer.lr": 0.4}, {"optimizer.lr": 0.8})
    again = tuner("optimizer.lr=0.1,0.2", extend=3)
    again.settle(Store(tmp_store))  # from the store only
    assert again.cells[0].record == cell.record


def test_extend_limits_the_number_of_added_values(tuner, tmp_store):
    tuned = tuner("optimizer.lr=0.1,0.2", extend=2)
    (cell,) = tuned.cells
    for _ in range(3):
        for config in tuned.trial_configs(cell):
            if Store(tmp_store).run(config).status == "missing":
                write_result(Store(tmp_store), config, config.optimizer["lr"] / 10)
        tuned.assess(Store(tmp_store))
        tuned.extend()
    assert cell.axes[0].values == [0.1, 0.2, 0.4, 0.8]
    assert cell.record.edges == {"optimizer.lr": "largest"}


def test_extension_stops_at_a_value_the_config_refuses(tuner, tmp_store):
    tuned = tuner("label_smoothing=0.3,0.6", extend=3)
    choose(tuned, tmp_store, [0.1, 0.2])
    notes: list[str] = []
    assert not tuned.extend(notes.append)
    assert "label_smoothing is not extended: label_smoothing must be in [0, 1), got 1.2" in notes[0]
    assert tuned.cells[0].axes[0].values == [0.3, 0.6]


# --- whole sweeps ---------------------------------------------------------------------------------

GRID = ("norm=bn,gn", "seed=0,1")
TUNE = TuneOptions(["optimizer.lr=0.05,0.1,0.2"])


@pytest.fixture
def run_sweep(base, faults):
    """Return a function that sweeps on the fake engine and returns the result and the lines."""
    from normbench.sweep.observer import SweepView

    class View(SweepView):
        def __init__(self):
            self.lines: list[str] = []

        def line(self, text):
            self.lines.append(text)

    def run(*more: str, tune=TUNE, **options):
        view = View()
        command = ["normbench", "sweep", *more]
        return sweep([*base, *(more or GRID)], command, view=view, tune=tune, **options), view.lines

    return run


def test_sweep_tunes_then_trains_the_final_runs(run_sweep, tmp_store):
    store = Store(tmp_store)
    result, lines = run_sweep()
    assert result.exit_code == 0
    assert lines[0].startswith("trials: 6 runs: 6 to train; ")
    assert [line for line in lines if line.startswith("chosen ")] == [
        f"chosen       {cell.name}  optimizer.lr={cell.chosen['optimizer.lr']}  "
        f"(validation accuracy {100 * max(cell.means):.2f} %, best of 3"
        + (f"; this is the {cell.edges['optimizer.lr']} tried, --extend N tries further ones)"
           if cell.edges else ")")
        for cell in result.tuned
    ]  # fmt: skip
    assert lines[-1] == "10 runs: 10 trained"
    # The record: values, trials with their numbers, the choice, the final runs.
    (tuning,) = tunings(store)
    assert (tuning.keys, tuning.metric, tuning.seeds) == (("optimizer.lr",), "val_acc", (1000,))
    assert tuning.cells == result.tuned == tuning_of(store).cells
    for cell in tuning.cells:
        assert [trial.values["optimizer.lr"] for trial in cell.trials] == [0.05, 0.1, 0.2]
        for trial in cell.trials:
            assert store.run(trial.run).summary["val_acc"] == trial.metric
        assert len(cell.final) == 2
        for name in cell.final:
            run = store.run(name)
            assert run.config["optimizer"]["lr"] == cell.chosen["optimizer.lr"]
            assert run.meta["tuned"] == {
                "sweep": tuning.sweep,
                "values": cell.chosen,
                "metric": "val_acc",
                "trials": [trial.run for trial in cell.trials],
            }
            assert run.verify() == "finished"
    assert tuning_of(store).trials == {t.run for cell in tuning.cells for t in cell.trials}
    assert not tuning_of(store).trials & set(result.final_names)
    head = records(store)[0].head
    assert (len(head["cells"]), head["result"]) == (10, "complete")
    # Repeating the command trains and records nothing.
    _, lines = run_sweep()
    assert lines[0] == "trials: 6 runs: 6 skipped"
    assert lines[-1] == "10 runs: 10 skipped"
    assert len(records(store)) == 1
    assert store.foreign() == []


def test_more_final_seeds_use_the_same_trials(run_sweep, tmp_store):
    run_sweep()
    result, lines = run_sweep("norm=bn,gn", "seed=range(0,4)")
    assert lines[-1] == "14 runs: 4 trained, 10 skipped"
    assert [len(cell.final) for cell in tuning_of(Store(tmp_store)).cells] == [4, 4]
    assert len(result.final_names) == 8


def test_extension_proceeds_in_rounds(run_sweep, tmp_store):
    result, lines = run_sweep("norm=bn", "seed=0", tune=TuneOptions(TUNE.keys, extend=4))
    (cell,) = result.tuned
    lists = [values["optimizer.lr"] for values in cell.values]
    assert result.exit_code == 0
    further = [line for line in lines if line.startswith("further trials: 1 run: 1 to train")]
    assert len(further) == len(cell.added) == len(lists) - 3
    assert not cell.edges or len(cell.added) == 4
    trained = len(records(Store(tmp_store))[0].results)
    assert trained == len(lists) + 1
    _, lines = run_sweep("norm=bn", "seed=0", tune=TuneOptions(TUNE.keys, extend=4))
    assert lines[-1] == f"{trained} runs: {trained} skipped"


def test_plan_shows_trials_and_final_runs(run_sweep, tmp_store):
    result, lines = run_sweep(dry_run=True)
    assert result.exit_code == 0
    assert lines[0] == "trials:"
    assert sum("-s1000-" in line for line in lines) == 6
    assert "missing      digits-resnet8-gn-b16  optimizer.lr=? seed=0,1" in lines
    assert lines[-1].startswith("together: 10 runs: 10 to train; ")
    assert not list(tmp_store.iterdir())
    run_sweep()
    _, lines = run_sweep("norm=bn,gn", "seed=0,1,2", dry_run=True)
    assert sum(line.startswith("finished ") for line in lines) == 10
    assert lines[-1].startswith("together: 12 runs: 10 skipped, 2 to train; about ")


def test_failed_trial_leaves_its_cell_without_final_runs(run_sweep, faults, tmp_store):
    plan = run_sweep(dry_run=True)[0].plan
    broken = plan.cells[0].name
    faults(broken, "raise")
    result, lines = run_sweep()
    assert result.exit_code == 1
    assert f"not chosen   digits-resnet8-bn-b16  1 trial has failed, the first is {broken}" in lines
    assert {name.split("-")[2] for name in result.final_names} == {"gn"}
    assert records(Store(tmp_store))[0].head["result"] == "failed"
    result, lines = run_sweep()
    assert result.exit_code == 1  # unchanged: failed trials are not retried
    result, lines = run_sweep(retry_failed=True)
    assert result.exit_code == 0
    assert lines[-1] == "10 runs: 3 trained, 7 skipped"


def test_cell_whose_trials_all_diverge_is_not_chosen(run_sweep, tmp_store):
    result, lines = run_sweep("norm=bn", "seed=0", "max_loss=1e-9")
    assert result.exit_code == 1
    assert lines[-2:] == [
        "not chosen   digits-resnet8-bn-b16  no value is left to choose: of 3 trials, 3 diverged",
        "3 runs: 3 diverged",
    ]


def test_values_that_cannot_be_trained_can_be_skipped(run_sweep, tmp_store, monkeypatch):
    def problems(cells, *others):
        return {c.name: "too fast" for c in cells if c.config.optimizer["lr"] == 0.2}

    monkeypatch.setattr("normbench.sweep.phases.problems", problems)
    with pytest.raises(UserError, match="1 run cannot be trained: --skip-invalid"):
        run_sweep("norm=bn", "seed=0")
    assert not list(tmp_store.iterdir())
    result, _ = run_sweep("norm=bn", "seed=0", skip_invalid=True)
    assert result.exit_code == 0
    (cell,) = tuning_of(Store(tmp_store)).cells
    assert [trial.status for trial in cell.trials] == ["finished", "finished", "invalid"]
    assert cell.means[2] is None
    assert cell.chosen["optimizer.lr"] in (0.05, 0.1)


def test_again_retrains_trials_and_final_runs(run_sweep, tmp_store):
    run_sweep()
    _, lines = run_sweep(again=True)
    assert f"6 runs are set aside in {tmp_store}, as .NAME.replaced-TIME" in lines
    assert f"4 runs are set aside in {tmp_store}, as .NAME.replaced-TIME" in lines
    assert lines[-1] == "10 runs: 10 trained"


def test_choices_from_trials_of_a_plain_sweep_are_recorded(run_sweep, tmp_store):
    run_sweep("norm=bn", "seed=0,1000", "optimizer.lr=0.05,0.1,0.2", tune=None)
    assert tunings(Store(tmp_store)) == []
    _, lines = run_sweep("norm=bn", "seed=0")
    assert lines[-1] == "4 runs: 4 skipped"
    (cell,) = tuning_of(Store(tmp_store)).cells
    assert Store(tmp_store).run(cell.final[0]).meta["tuned"]["values"] == cell.chosen


def test_status_shows_the_choice_and_its_alternatives(run_sweep, tmp_store):
    result, _ = run_sweep()
    console = Console(file=Path(os.devnull).open("w"), width=150, record=True)  # noqa: SIM115
    assert show_status(Store(tmp_store), None, console) == 0
    text = console.export_text()
    assert "optimizer.lr by validation accuracy (%), seed 1000; 3 epochs per trial" in text
    for cell in result.tuned:
        assert f"optimizer.lr={cell.chosen['optimizer.lr']}" in text
        for values, mean in zip(cell.values, cell.means, strict=True):
            assert f"{values['optimizer.lr']}: {100 * mean:.2f}" in text
    assert "highest mean of the final validation accuracy" in " ".join(text.split())


@pytest.mark.slow
def test_inline_sweep_tunes_on_digits_with_the_real_engine(tmp_store):
    words = ["norm=bn", "batch=64", "seed=0", "dataset=digits", "dataset.train_size=320",
             "arch=resnet8", "arch.width=4", "epochs=1", f"store={tmp_store}", "executor=inline",
             "--tune", "optimizer.lr=0.001,0.2", "--tune-metric", "val_loss"]  # fmt: skip
    command = [sys.executable, "-m", "normbench", "sweep", *words]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "trials: 2 runs: 2 to train" in output
    assert "final: 1 run: 1 to train" in output
    (cell,) = tuning_of(Store(tmp_store)).cells
    losses = [Store(tmp_store).run(trial.run).summary["val_loss"] for trial in cell.trials]
    assert list(cell.means) == losses
    assert cell.means[cell.values.index(cell.chosen)] == min(losses)


# --- the record of final runs ---------------------------------------------------------------------


def test_final_run_records_its_trials_when_it_starts(run_sweep, faults, tmp_store, monkeypatch):
    monkeypatch.setattr("normbench.sweep.tuned_phases.name_trials", lambda *arguments: None)
    result, _ = run_sweep()
    for cell in result.tuned:
        for name in cell.final:
            assert Store(tmp_store).run(name).meta["tuned"] == {
                "sweep": result.record.name,
                "values": cell.chosen,
                "metric": "val_acc",
                "trials": [trial.run for trial in cell.trials],
            }
        assert all("tuned" not in Store(tmp_store).run(t.run).meta for t in cell.trials)


def test_final_run_resumed_without_tuning_keeps_its_trials(run_sweep, tmp_store):
    result, _ = run_sweep("norm=bn", "seed=0")
    run = Store(tmp_store).run(result.tuned[0].final[0])
    tuned = run.meta["tuned"]
    (run.path / "summary.json").unlink()
    run.reset()
    run_sweep("norm=bn", "seed=0", f"optimizer.lr={tuned['values']['optimizer.lr']}", tune=None)
    assert len(run.meta["sessions"]) == 2
    assert run.meta["tuned"] == tuned


# --- choices that change --------------------------------------------------------------------------


@pytest.fixture
def rechosen(run_sweep, tmp_store):
    """Tune a cell twice, the second time without the chosen value; return results and lines."""
    first, _ = run_sweep("norm=bn", "seed=0,1")
    (cell,) = first.tuned
    remaining = [lr for lr in (0.05, 0.1, 0.2) if lr != cell.chosen["optimizer.lr"]]
    again = TuneOptions([f"optimizer.lr={','.join(map(str, remaining))}"])
    second, lines = run_sweep("norm=bn", "seed=0,1", tune=again)
    return first, second, lines


def test_final_runs_of_an_earlier_choice_are_superseded(rechosen, tmp_store):
    first, second, lines = rechosen
    ((old,), (new,)) = first.tuned, second.tuned
    assert old.chosen != new.chosen
    tuning = tuning_of(Store(tmp_store))
    (cell,) = tuning.cells
    assert (cell.chosen, cell.final) == (new.chosen, new.final)
    assert tuning.superseded == set(old.final)
    assert not tuning.trials & {*old.final, *new.final}
    assert lines[-2] == (
        f"superseded   digits-resnet8-bn-b16  optimizer.lr={old.chosen['optimizer.lr']}: 2 final "
        f"runs; the choice is now optimizer.lr={new.chosen['optimizer.lr']} "
        f"(sweep {second.record.name})"
    )


def test_final_runs_of_a_restored_choice_count_again(rechosen, run_sweep, tmp_store):
    first, second, _ = rechosen
    third, lines = run_sweep("norm=bn", "seed=0,1")
    assert lines[-1] == "5 runs: 5 skipped"
    assert third.record is not None  # the choice changed, although nothing was trained
    tuning = tuning_of(Store(tmp_store))
    assert tuning.cells[0].final == first.tuned[0].final
    assert tuning.superseded == set(second.tuned[0].final)


def test_status_names_superseded_final_runs(rechosen, tmp_store):
    first, second, lines = rechosen
    for result in (first, second):
        console = Console(file=Path(os.devnull).open("w"), width=200, record=True)  # noqa: SIM115
        show_status(Store(tmp_store), result.record.name, console)
        assert lines[-2] in console.export_text()


def test_list_marks_superseded_runs(rechosen, tmp_store):
    from normbench.cli.list import rows

    first, _, _ = rechosen
    store = Store(tmp_store)
    listed = rows(store.runs(), tuning=tuning_of(store))
    assert {row["name"] for row in listed if row["superseded"]} == set(first.tuned[0].final)


# --- the check before the training ----------------------------------------------------------------


@pytest.fixture
def checked_configs(monkeypatch):
    """Record the configs whose networks the executor is asked to build."""
    from normbench.sweep.executors.local import Local

    configs: list = []
    check = Local.check

    def record(self, requested):
        configs.extend(requested)
        return check(self, requested)

    monkeypatch.setattr(Local, "check", record)
    return configs


def test_each_network_is_checked_once(run_sweep, checked_configs):
    run_sweep()
    assert [(c.norm_name, c.optimizer["lr"]) for c in checked_configs] == [
        (norm, lr) for norm in ("bn", "gn") for lr in (0.05, 0.1, 0.2)
    ]


def test_final_runs_with_more_epochs_are_checked_before_the_trials(
    run_sweep, checked_configs, faults
):
    run_sweep("norm=bn", "seed=0,1", tune=TuneOptions(TUNE.keys, epochs=1))
    assert [(c.optimizer["lr"], c.epochs) for c in checked_configs] == [
        (lr, epochs) for epochs in (1, 3) for lr in (0.05, 0.1, 0.2)
    ]


def test_value_whose_final_runs_are_invalid_is_not_tried(run_sweep, tmp_store, monkeypatch):
    def problems(cells, *others):
        wrong = [c for c in cells if c.config.epochs == 3 and c.config.optimizer["lr"] == 0.2]
        return {cell.name: "too long" for cell in wrong}

    monkeypatch.setattr("normbench.sweep.phases.problems", problems)
    options = TuneOptions(TUNE.keys, epochs=1)
    with pytest.raises(UserError, match="1 run cannot be trained"):
        run_sweep("norm=bn", "seed=0", tune=options)
    result, lines = run_sweep("norm=bn", "seed=0", tune=options, skip_invalid=True)
    assert any("its final runs cannot be trained: too long" in line for line in lines)
    assert [trial.status for trial in result.tuned[0].trials] == ["finished"] * 2 + ["invalid"]
    assert result.exit_code == 0


# --- killed and resumed ---------------------------------------------------------------------------


def start_sweep(base, step_seconds, *options):
    return subprocess.Popen(
        [sys.executable, str(FAKESWEEP), "sweep", *base, *GRID, "epochs=20", "executor.workers=2",
         "--tune", "optimizer.lr=0.1,0.2", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]),
             "FAKE_STEP_SECONDS": str(step_seconds)},
    )  # fmt: skip


@pytest.mark.parametrize("phase", ["trials", "final runs"])
def test_sweep_killed_in_either_phase_resumes(base, faults, tmp_store, phase):
    store = Store(tmp_store)

    def under_way() -> bool:
        """Return whether one run of the phase is finished and another has a checkpoint."""
        runs = [run for run in store.runs() if ("-s1000-" in run.name) == (phase == "trials")]
        advancing = sum(
            run.status == "running" and (run.last_metrics() or {}).get("epoch", 0) > 1
            for run in runs
        )
        return advancing > 0 and any(run.status == "finished" for run in runs)

    # Short trials if the kill comes later, in the final runs.
    options = ["--tune-epochs", "2"] if phase == "final runs" else []
    process = start_sweep(base, 0.02, *options)
    wait_until(under_way, seconds=90)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until(lambda: not any(run.status == "running" for run in store.runs()), seconds=90)
    # The kill may fall between writing a run's summary and updating its meta.json.
    finished = {run.name: run.summary for run in store.runs() if run.status == "finished"}
    assert finished
    # A row for the second epoch implies a checkpoint of the first.
    advanced = {run.name for run in store.runs() if (run.last_metrics() or {}).get("epoch", 0) > 1}
    output, _ = (process := start_sweep(base, 0.002, *options)).communicate(timeout=120)
    assert process.returncode == 0, output
    if advanced - finished.keys():  # the run may have ended between the check and the kill
        assert "to resume" in output
    runs = store.runs()
    assert len(runs) == 8
    for run in runs:
        assert run.status == "finished"
        first_epochs = [session["from_epoch"] for session in run.meta["sessions"]]
        assert first_epochs[0] == 0
        if run.name in advanced:
            assert all(epoch > 0 for epoch in first_epochs[1:])  # not restarted
        if run.name in finished:
            assert (len(first_epochs), run.summary) == (1, finished[run.name])
        if "-s1000-" not in run.name:
            assert len(run.meta["tuned"]["trials"]) == 2
    # The result is that of an uninterrupted sweep.
    cells = tuning_of(store).cells
    assert [len(cell.final) for cell in cells] == [2, 2]


def test_tuning_experiment_trains_the_same_runs_as_typed_options(run_sweep, tmp_path):
    folder = tmp_path / "conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "title: a test\noverrides: ['norm=bn,gn', 'seed=0,1', optimizer.lr=0.1]\n"
        "tune: {optimizer.lr: [0.05, 0.1, 0.2]}\n"
    )
    first, _ = run_sweep()
    again, lines = run_sweep("+experiment=mine", tune=None, config_dir=folder)
    assert [cell.chosen for cell in again.tuned] == [cell.chosen for cell in first.tuned]
    assert lines[-1] == "10 runs: 10 skipped"  # the runs are the same


# --- mistakes -------------------------------------------------------------------------------------

TUNED = ["--tune", "optimizer.lr=0.1,0.2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=0.1,0.3", *TUNED], "'optimizer.lr=0.1,0.3' and --tune optimizer.lr=… set"),
        (["optimizer.lr=0.1", *TUNED], "'optimizer.lr=0.1' and --tune optimizer.lr=… set the same"),
        (["--tune", "optimizer.rl=0.1,0.2"], "unknown key 'optimizer.rl': did you mean"),
        (["--tune", "optimizer.lr=0.1"], "one value leaves nothing to choose"),
        (["--tune", "optimizer.lr=0.1,0.10"], "one value leaves nothing to choose"),
        (["--tune", "optimizer.lr=0.1,fast"], "optimizer.lr must be a number, got 'fast'"),
        (["--tune", "optimizer.lr"], "write key=value"),
        ([*TUNED, "--tune", "optimizer.lr=0.4,0.8"], "--tune names optimizer.lr twice"),
        ([*TUNED, "--tune-seeds", "1"], "seed 1 is both a tuning seed and a final seed"),
        ([*TUNED, "--tune-seeds", "x"], "--tune-seeds must be whole numbers"),
        ([*TUNED, "--tune-epochs", "0"], "--tune-epochs must be at least 1, got 0"),
        ([*TUNED, "--tune-metric", "test_acc"], "--tune-metric test_acc uses test images"),
        ([*TUNED, "--tune-metric", "gap"], "--tune-metric gap uses test images"),
        (
            [*TUNED, "--tune-metric", "val_ac"],
            "unknown --tune-metric 'val_ac': did you mean",
        ),
        ([*TUNED, "--tune-metric", "train_loss"], "unknown --tune-metric 'train_loss'"),
        ([*TUNED, "--extend", "-1"], "--extend must be at least 0, got -1"),
        (
            ["--tune", "optimizer.lr=0.1,0.2,0.3,0.9", "--extend", "1"],
            "neither a constant ratio nor",
        ),
        (["--tune", "schedule=cosine,step", "--extend", "1"], "needs a tuned key with numbers"),
        (["--extend", "2"], "--extend requires --tune KEY=VALUE,VALUE"),
        (["--tune-epochs", "2"], "--tune-epochs requires --tune"),
        (["--tune", "seed=1,2"], "seed cannot be tuned: the best of several seeds is luck"),
        (["--tune", "batch=16,32"], "batch cannot be tuned: it tells the"),
        (["--tune", "epochs=1,2"], "epochs cannot be tuned: every value has the same budget"),
        (["--tune", "dataset.validation=10,20"], "dataset.validation cannot be tuned"),
    ],
)
def test_mistakes_are_refused_in_one_line(base, tmp_store, capsys, words, message):
    assert main(["sweep", *base, "norm=bn", "seed=0,1", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_store.iterdir())


@pytest.mark.parametrize("options", [{"epochs": 2}, {"seeds": "1000,1001"}])
def test_trials_with_another_tuning_budget_are_refused(run_sweep, options):
    run_sweep("norm=bn", "seed=0")
    with pytest.raises(UserError, match=r"made with --tune-epochs 3 --tune-seeds 1000 \(sweep"):
        run_sweep("norm=gn", "seed=0", tune=TuneOptions(TUNE.keys, **options))
    run_sweep("norm=gn", "seed=0")


def test_damaged_tuning_record_is_refused(run_sweep, tmp_store):
    run_sweep("norm=bn", "seed=0")
    (path,) = tmp_store.glob("sweeps/*/tuning.json")
    tree = json.loads(path.read_text())
    tree["cells"][0]["means"] = "high"
    path.write_text(json.dumps(tree))
    from normbench.store.files import StoreError

    with pytest.raises(StoreError, match=r"tuning.json.*means"):
        tuning_of(Store(tmp_store))
