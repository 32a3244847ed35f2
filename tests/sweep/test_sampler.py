"""``normbench sweep --sampler``: proposed values, and no run is trained twice."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from normbench.cli import main
from normbench.store.store import Store
from normbench.store.tuning import tuning_of, tunings
from normbench.sweep.axis import Axis, Span, axes_of
from normbench.sweep.record import records
from normbench.sweep.sampler import SAMPLERS, Search
from normbench.sweep.tune import TuneOptions, Tuner

pytest.importorskip("optuna")

FAKESWEEP = Path(__file__).with_name("fakesweep.py")
SPACE = ("optimizer.lr=log(0.01,1)", "optimizer.weight_decay=log(1e-5,0.01)")
INSTALLED = ["qmc", "random", "tpe"]  # cmaes is a package of its own


def score(values: dict) -> float:
    """Return a score that peaks at rate 0.1 and weight decay 0.001; large rates diverge."""
    rate, decay = values["optimizer.lr"], values["optimizer.weight_decay"]
    if rate > 0.5:
        return -math.inf
    return -(math.log10(rate / 0.1) ** 2) - math.log10(decay / 0.001) ** 2


def run_search(sampler: str, trials: int, seed: int = 1000, space=SPACE) -> Search:
    search = Search(axes_of(space, {}), sampler, trials, seed)
    while search.advance([score(values) for values in search.proposals]):
        pass
    return search


# --- proposals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", INSTALLED)
def test_proposals_are_distinct_values_of_the_space_with_three_digits(sampler):
    proposals = run_search(sampler, 24).proposals
    assert len(proposals) == 24
    assert len({json.dumps(values) for values in proposals}) == 24
    for values in proposals:
        assert 0.01 <= values["optimizer.lr"] <= 1
        assert 1e-5 <= values["optimizer.weight_decay"] <= 0.01
        assert all(value == float(f"{value:.3g}") for value in values.values())


@pytest.mark.parametrize("sampler", INSTALLED)
def test_proposals_depend_only_on_seed_and_results(sampler):
    proposals = run_search(sampler, 16).proposals
    assert run_search(sampler, 16).proposals == proposals
    assert run_search(sampler, 20).proposals[:16] == proposals  # more trials extend these
    assert run_search(sampler, 16, seed=1001).proposals != proposals


@pytest.mark.parametrize(("sampler", "known"), [("random", 16), ("qmc", 16), ("tpe", 10)])
def test_proposals_that_need_no_results_are_all_made_at_the_start(sampler, known):
    assert len(Search(axes_of(SPACE, {}), sampler, 16, 0).proposals) == known
    assert len(Search(axes_of(SPACE, {}), sampler, 4, 0).proposals) == 4


def test_tpe_uses_the_results():
    proposals = run_search("tpe", 30).proposals
    other = Search(axes_of(SPACE, {}), "tpe", 30, 1000)
    while other.advance([float(index) for index in range(len(other.proposals))]):
        pass
    assert other.proposals[:10] == proposals[:10]
    assert other.proposals[11:] != proposals[11:]
    scores = [score(values) for values in proposals]
    assert max(scores[10:]) > max(scores[:10])


def test_integers_and_list_values_keep_their_types():
    space = ("a=log(1,64)", "b=int(interval(0,9))", "c=x,y", "d=interval(0,1)")
    kinds = {"a": int, "b": int, "c": str, "d": float}
    for values in Search(axes_of(space, {}), "random", 50, 0).proposals:
        assert {key: type(value) for key, value in values.items()} == kinds
        assert 1 <= values["a"] <= 64
        assert 0 <= values["b"] <= 9
        assert values["c"] in ("x", "y")


def test_repeated_proposals_are_replaced():
    axes = axes_of(["a=1,2,3", "b=1,2,3"], {})
    search = Search(axes, "tpe", 8, 0)
    assert len({tuple(values.values()) for values in search.proposals}) == 8
    assert not search.advance([0.0] * 8)


@pytest.mark.parametrize(
    ("text", "span", "written"),
    [
        ("log(0.01,1)", Span(0.01, 1.0, True), "log(0.01,1)"),
        ("log(1,64)", Span(1, 64, True), "log(1,64)"),
        ("log(1.0,64)", Span(1.0, 64.0, True), "log(1.0,64.0)"),
        ("interval(0,1)", Span(0.0, 1.0, False), "interval(0,1)"),
        ("int(interval(1,8))", Span(1, 8, False), "int(interval(1,8))"),
        ("tag(log,interval(0.01,1))", Span(0.01, 1.0, True), "log(0.01,1)"),
    ],
)
def test_range_is_written_as_typed(text, span, written):
    (axis,) = axes_of([f"key={text}"], {})
    assert (axis.span, axis.listed) == (span, written)
    (again,) = axes_of([f"key={written}"], {})
    assert again.span == span
    assert span.whole == again.span.whole


@pytest.mark.parametrize(
    ("span", "value", "edge"),
    [
        (Span(0.01, 1.0, True), 0.8, True),
        (Span(0.01, 1.0, True), 0.6, False),
        (Span(0.01, 1.0, True), 0.015, True),
        (Span(0.0, 1.0, False), 0.5, False),
        (Span(0.0, 1.0, False), 0.95, True),
    ],
)
def test_outer_tenths_of_a_range_are_its_edges(span, value, edge):
    assert span.at_edge(value) == edge


def test_all_cells_start_with_the_same_values(base):
    tuner = Tuner(
        [[*base, "norm=bn,gn", "seed=0"]], TuneOptions(list(SPACE), sampler="tpe", trials=12)
    )
    first, second = (cell.combinations for cell in tuner.cells)
    assert first == second
    assert len(first) == 10
    assert tuner.unproposed(tuner.cells[0]) == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_exist_in_optuna(sampler):
    import optuna

    assert issubclass(getattr(optuna.samplers, SAMPLERS[sampler]), optuna.samplers.BaseSampler)


# --- whole sweeps ---------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_store):
    return ["dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4",
            "epochs=2", f"store={tmp_store}"]  # fmt: skip


GRID = ("norm=bn", "batch=16,32", "seed=0,1", "executor.workers=2")
TUNE = tuple(word for text in SPACE for word in ("--tune", text))
TPE = ("--sampler", "tpe", "--trials", "13")


@pytest.fixture
def run_sweep(base, faults, capsys):
    """Run the command on workers of the fake engine; return exit code and output."""

    def run(*more: str, grid=GRID, tune=(*TUNE, *TPE)):
        code = main(["sweep", *base, *grid, *tune, *more])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def epochs_trained(faults) -> int:
    """Return the number of epochs trained in all runs together."""
    return len((faults.folder / "epochs.log").read_text().splitlines())


def test_sampler_proposes_the_trials_of_each_cell(run_sweep, faults, tmp_store):
    store = Store(tmp_store)
    code, out = run_sweep()
    assert code == 0
    assert "trials: 20 runs: 20 to train" in out
    assert out.count("further trials: 2 runs: 2 to train") == 3
    assert out.count("best of 13") == 2
    assert "30 runs: 30 trained" in out
    (tuning,) = tunings(store)
    assert tuning.sampler == {
        "name": "tpe", "trials": 13, "seed": 1000,
        "space": {"optimizer.lr": "log(0.01,1)", "optimizer.weight_decay": "log(1e-05,0.01)"},
        "optuna": tuning.sampler["optuna"],
    }  # fmt: skip
    for cell in tuning.cells:
        assert len(cell.values) == len(cell.trials) == 13
        assert cell.means[cell.values.index(cell.chosen)] == max(cell.means)
        for trial in cell.trials:
            optimizer = store.run(trial.run).config["optimizer"]
            assert optimizer["lr"] == trial.values["optimizer.lr"]
            assert optimizer["weight_decay"] == trial.values["optimizer.weight_decay"]
        for name in cell.final:
            assert len(store.run(name).meta["tuned"]["trials"]) == 13
    assert tuning_of(store).cells == tuning.cells
    assert epochs_trained(faults) == 60
    # The same command proposes the same values, and trains and records nothing.
    code, out = run_sweep()
    assert code == 0
    assert "trials: 26 runs: 26 skipped" in out
    assert (epochs_trained(faults), len(records(store))) == (60, 1)


def test_more_trials_continue_from_those_in_the_store(run_sweep, faults, tmp_store):
    run_sweep(tune=(*TUNE, "--sampler", "tpe", "--trials", "11"))
    assert epochs_trained(faults) == 2 * (22 + 4)
    code, out = run_sweep(tune=(*TUNE, "--sampler", "tpe", "--trials", "12"))
    assert code == 0
    assert "trials: 24 runs: 22 skipped, 2 to train" in out


def test_again_retrains_the_same_proposals(run_sweep, tmp_store):
    words = (*TUNE, "--sampler", "tpe", "--trials", "11")
    run_sweep(tune=words)
    before = values_of(Store(tmp_store))
    code, out = run_sweep("--again", tune=words)
    assert code == 0
    assert "26 runs: 26 trained" in out
    assert values_of(Store(tmp_store)) == before


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_sampler_that_ignores_results_trains_all_trials_in_one_round(run_sweep, sampler):
    code, out = run_sweep(tune=(*TUNE, "--sampler", sampler, "--trials", "12"))
    assert code == 0
    assert "trials: 24 runs: 24 to train" in out
    assert "further trials" not in out


def test_plan_counts_trials_that_are_not_proposed_yet(run_sweep, tmp_store):
    code, out = run_sweep("--dry-run")
    assert code == 0
    assert "--sampler tpe: 6 further trials, proposed one for each cell at a time" in out
    assert "together: 30 runs: 30 to train" in out
    assert not list(tmp_store.iterdir())


def test_cell_with_a_failed_trial_waits_while_others_continue(run_sweep, faults, tmp_store):
    _, out = run_sweep("--dry-run")
    broken = next(word for word in out.split() if "-b16-s1000-" in word)
    faults(broken, "raise")
    code, out = run_sweep()
    assert code == 1
    assert out.count("further trials: 1 run: 1 to train") == 3
    assert f"1 trial has failed, the first is {broken}" in out
    code, out = run_sweep("--retry-failed")
    assert code == 0
    assert [len(cell.trials) for cell in tuning_of(Store(tmp_store)).cells] == [13, 13]


def test_proposals_continue_after_trials_diverge(run_sweep):
    code, out = run_sweep("max_loss=1e-9")
    assert code == 1
    assert "no value is left to choose: of 13 trials, 13 diverged" in out


def test_until_adds_seeds_to_cells_that_a_sampler_tuned(run_sweep, tmp_store):
    until = ("--until", "0.001", "--max-seeds", "4", "--baseline", "batch=16")
    code, out = run_sweep(*until, "--dry-run")
    assert code == 0
    assert "at most 34 runs: 34 to train (26 trials and 8 final)" in out
    tune = (*TUNE, "--sampler", "random", "--trials", "3")
    code, out = run_sweep(*until, tune=tune)
    assert code == 0
    assert [len(cell.final) for cell in tuning_of(Store(tmp_store)).cells] == [4, 4]
    code, out = run_sweep(*until, tune=(*tune[:-1], "4"))
    assert code == 2
    assert "--sampler random --trials 3" in out


def test_experiment_can_name_a_sampler(run_sweep, tmp_path, capsys):
    folder = tmp_path / "conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "title: a test\noverrides: [norm=bn, 'batch=16,32', 'seed=0,1']\n"
        "tune: {optimizer.lr: 'log(0.01,1)', optimizer.weight_decay: 'log(1e-5,0.01)'}\n"
        "sampler: tpe\ntrials: 13\n"
    )
    more = ("--config-dir", str(folder))
    code, out = run_sweep("--dry-run", *more, grid=["+experiment=mine"], tune=())
    assert code == 0
    assert "together: 30 runs: 30 to train" in out
    assert main(["experiments", "mine", *more]) == 0
    shown = capsys.readouterr().out
    assert "13 values in each cell, proposed by the sampler tpe" in shown
    assert "after 26 trials" in shown


# --- killed and resumed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return values and choices of an uninterrupted sweep."""
    store = tmp_path_factory.mktemp("undisturbed") / "runs"
    subprocess.run(command(store), env=environment(), capture_output=True, text=True, check=True)
    return values_of(Store(store))


def command(store: Path) -> list[str]:
    return [sys.executable, str(FAKESWEEP), "sweep", "dataset=digits", "dataset.train_size=160",
            "arch=resnet8", "arch.width=4", "epochs=2", f"store={store}",
            *GRID, *TUNE, *TPE]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **more}


def values_of(store: Store) -> list:
    return [(cell.values, cell.means, cell.chosen, cell.final) for cell in tuning_of(store).cells]


@pytest.mark.parametrize(
    ("place", "ends"),
    [
        pytest.param(
            "normbench.sweep.phases:_Recorder.ended 7",
            6,
            id="first round",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "normbench.sweep.tune:Tuner.extend 3",
            22,
            id="between rounds",
            marks=pytest.mark.slow,
        ),
        pytest.param("normbench.sweep.phases:_Recorder.ended 24", 23, id="within a round"),
    ],
)
def test_killed_sweep_repeats_its_proposals_and_retrains_nothing(
    run_sweep, run_killed, faults, tmp_store, uninterrupted, place, ends
):
    store = Store(tmp_store)
    run_killed(command(tmp_store), environment(FAKE_KILL=place))
    finished = {run.name: run.meta["sessions"] for run in store.runs() if run.status == "finished"}
    assert len(finished) >= ends
    code, out = run_sweep()
    assert code == 0, out
    assert values_of(store) == uninterrupted
    assert len(store.runs()) == 30
    for name, sessions in finished.items():
        assert store.run(name).meta["sessions"] == sessions
    assert epochs_trained(faults) == 60


# --- mistakes -------------------------------------------------------------------------------------

RANGE = ("--tune", SPACE[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*RANGE, "--sampler", "tpee", "--trials", "5"], "unknown --sampler 'tpee': did you mean"),
        ([*RANGE, "--sampler", "tpe"], "--sampler tpe needs --trials N"),
        ([*RANGE, "--sampler", "tpe", "--trials", "1"], "--trials must be at least 2, got 1"),
        ([*RANGE], "a range is not a list of values; --sampler tpe --trials 20"),
        (["--tune", "optimizer.lr=interval(0,1)"], "optimizer.lr=interval(0,1): a range is not"),
        (["--tune", "optimizer.lr=0.1,0.2", "--trials", "5"], "--trials 5 needs --sampler"),
        (["--sampler", "tpe", "--trials", "5"], "--sampler requires --tune"),
        (
            ["--tune", "optimizer.lr=0.1,0.2", "--sampler", "tpe", "--trials", "2"],
            "there are 2 combinations, all of which are tried without --sampler",
        ),
        (
            ["--tune", "optimizer.lr=log(0.1,0.11)", "--sampler", "tpe", "--trials", "9"],
            "has 11 values (those of a range have three significant digits)",
        ),
        ([*RANGE, "--sampler", "cmaes", "--trials", "5"], "cmaes needs two or more ranges"),
        ([*RANGE, *TPE, "--extend", "2"], "--extend continues a list by its step"),
        (["--tune", "optimizer.lr=log(1,0.1)", *TPE], "first limit must be below the second"),
        (["--tune", "optimizer.lr=log(0,1)", *TPE], "log() needs limits above 0, got 0 and 1"),
        (["--tune", "label_smoothing=interval(0,1)", *TPE], "label_smoothing must be in [0, 1)"),
        (["optimizer.lr=log(0.1,1)"], "an interval has no finite set of values"),
    ],
)
def test_mistakes_are_refused_in_one_line(run_sweep, tmp_store, words, message):
    code, out = run_sweep(tune=words)
    assert code == 2
    assert message in out
    assert out.count("\n") == 1
    assert not list(tmp_store.iterdir())


@pytest.mark.parametrize(
    ("package", "sampler", "message"),
    [
        ("optuna", "tpe", "--sampler needs Optuna: pip install 'normbench[optuna]'"),
        ("cmaes", "cmaes", "--sampler cmaes needs the package cmaes: pip install cmaes"),
    ],
)
def test_missing_package_is_named(run_sweep, monkeypatch, package, sampler, message):
    monkeypatch.setitem(sys.modules, package, None)
    code, out = run_sweep(tune=(*TUNE, "--sampler", sampler, "--trials", "5"))
    assert code == 2
    assert out == f"normbench: {message}\n"


def test_axis_of_a_list_is_written_as_its_values():
    assert Axis("key", [], [1, 2]).listed == "1,2"
