"""The Python API (``normbench.run``, ``sweep`` and ``report``) in scripts and notebooks."""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from pathlib import Path

import pytest

import normbench
from normbench import api
from normbench.cli import build_parser
from normbench.errors import UserError
from normbench.store.store import Run

SMALL = (
    "dataset=digits dataset.train_size=320 dataset.validation=200 arch=mlp_sigmoid arch.units=8 "
    "batch=64 epochs=2"
)
SWEEP = f"norm=bn,gn seed=0,1 executor=inline {SMALL}"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Return a store with the four runs of SWEEP."""
    folder = tmp_path_factory.mktemp("api") / "runs"
    normbench.sweep(SWEEP, store=folder, progress=False)
    return folder


# --- run ------------------------------------------------------------------------------------------


def test_run_is_trained_once_and_returns_its_results(tmp_store, capsys):
    run = normbench.run(f"norm=gn {SMALL}", store=tmp_store, progress=False)
    assert capsys.readouterr().out == ""
    assert run.trained
    assert run.status == "finished"
    assert run.path == tmp_store / run.name
    assert run.config["norm"]["name"] == "gn"
    assert run.metrics["epoch"].tolist() == [1, 2]
    assert run.metrics["val_acc"].iloc[-1] == run.summary["val_acc"]
    assert repr(run) == f"<run {run.name}: finished>"
    assert run.name in run._repr_html_()
    again = normbench.run(f"norm=gn {SMALL}", store=tmp_store)
    assert not again.trained
    assert again.summary == run.summary
    assert "nothing to train" in capsys.readouterr().out


def test_run_prints_and_records_the_same_as_the_command(tmp_store, capsys):
    words = f"norm=bn 'label=two words' {SMALL}"
    run = normbench.run(words, store=tmp_store)
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    assert "test accuracy" in printed
    recorded = (Run(run.path).meta or {})["command"]
    assert recorded[:5] == ["normbench", "run", "norm=bn", "label=two words", "dataset=digits"]
    assert recorded[-1] == f"--store={tmp_store}"


def test_model_of_a_run_is_a_keras_model(tmp_store):
    run = normbench.run(f"norm=gn {SMALL}", store=tmp_store, progress=False)
    assert run.model().output_shape == (None, 10)
    assert normbench.load(run.name, tmp_store).output_shape == (None, 10)


# --- sweep ----------------------------------------------------------------------------------------


def test_sweep_returns_cells_runs_and_table(store):
    sweep = normbench.sweep(SWEEP, store=store, progress=False)
    assert sweep.cells["state"].tolist() == ["finished"] * 4
    assert sweep.cells["result"].tolist() == ["skipped"] * 4
    assert sorted(sweep.runs["name"]) == sorted(sweep.names) == sorted(sweep.cells["run"])
    assert sweep.curves.groupby("run").size().tolist() == [2] * 4
    assert sweep.failed.empty
    assert "Test accuracy (%)" in str(sweep)
    assert "Test accuracy (%)" in sweep._repr_html_()
    assert repr(sweep) == f"<sweep of 4 runs in {store}: 4 skipped>"


def test_sweep_prints_the_same_as_the_command(store, capsys):
    normbench.sweep(f"norm=bn,gn {SMALL}", store=store)
    printed = capsys.readouterr().out
    assert "2 runs: 2 skipped" in printed
    assert "Test accuracy (%)" in printed
    assert f"normbench report {store} adds" in printed


def test_dry_run_of_a_sweep_trains_nothing(tmp_store):
    sweep = normbench.sweep(SWEEP, store=tmp_store, dry_run=True, progress=False)
    assert sweep.cells["state"].tolist() == ["missing"] * 4
    assert sweep.cells["result"].tolist() == [""] * 4
    assert not list(tmp_store.iterdir())
    assert "no cell is complete" in str(sweep)


def test_invalid_cells_of_a_sweep_are_listed(store):
    words = f"norm=gn norm.groups=3,4 {SMALL}"
    with pytest.raises(UserError, match="1 run cannot be trained: --skip-invalid"):
        normbench.sweep(words, store=store, progress=False)
    sweep = normbench.sweep(words, store=store, dry_run=True, progress=False)
    [(_, row)] = sweep.failed.iterrows()
    assert row["state"] == "invalid"
    assert "groups=3 does not divide" in row["error"]
    assert "groups=3 does not divide" in sweep._repr_html_()


def test_experiment_sets_the_table_of_its_sweep():
    from normbench.cli.sweep import asked_by_experiment

    arguments, _ = api._parsed("sweep", "+experiment=batch_sweep scale=small")
    assert asked_by_experiment(arguments)["by"] == "norm,batch"


# --- report ---------------------------------------------------------------------------------------


def test_report_returns_tables_and_figures(store, tmp_path, capsys):
    report = normbench.report(store, out=tmp_path / "report", progress=False)
    assert capsys.readouterr().out == ""
    assert report.page == tmp_path / "report" / "index.html"
    table = report.tables["test_acc"]
    assert table["norm"].tolist() == ["bn", "gn"]
    assert report.figures["test_acc-by-batch"].read_text(encoding="utf-8").startswith("<?xml")
    shown = report._repr_markdown_()
    assert "# Report" in shown
    assert "(data:image/svg+xml;base64," in shown
    assert "figures/" not in shown


def test_report_prints_the_same_as_the_command(store, tmp_path, capsys):
    out = tmp_path / "report"
    normbench.report([store], where="norm in [gn]", out=out, sort="test_acc", reverse=True)
    printed = capsys.readouterr().out
    assert "--where 'norm in [gn]' keeps 2 runs" in printed
    assert f"report: {tmp_path / 'report' / 'index.html'}" in printed


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: normbench.run("norm=gm"), "unknown norm 'gm': did you mean 'gn'?"),
        (lambda: normbench.run(""), "run needs KEY=VALUE words, as normbench.run("),
        (lambda: normbench.sweep([]), "sweep needs KEY=VALUE words, as normbench.sweep("),
        (lambda: normbench.run("norm='gn"), "cannot be split into words: No closing quotation"),
        (lambda: normbench.run("norm=gn --again"), "give it as an argument, normbench.run(…, a"),
        (lambda: normbench.run("norm=gn store=a", store="b"), "two stores are named: 'a' and 'b'"),
        (lambda: normbench.run("norm=gn", again=True, resume=True), "--resume continues a run"),
        (lambda: normbench.sweep("norm=gn", trials=3), "--trials requires --tune"),
        (lambda: normbench.sweep("norm=gn", max_seeds=3), "--max-seeds requires --until"),
        (
            lambda: normbench.sweep("norm=gn", tune="seed=a b", store=""),
            "the store's name is empty",
        ),
        (lambda: normbench.sweep("status"), "status"),
        (
            lambda: normbench.report(targt=0.9),
            "unknown option '--targt=0.9': did you mean --target?",
        ),
        (lambda: normbench.report(metrics=True), "normbench report --metrics"),
        (lambda: normbench.report("nowhere"), "there is no store 'nowhere'"),
    ],
)
def test_mistakes_raise_the_one_line_message_of_the_command(call, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(normbench.errors.NormbenchError, match=re.escape(line)) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- the package ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_every_command_option_is_an_argument(command):
    in_the_shell_alone = {
        "run": {"multirun", "print_config"},
        "sweep": {"detach", "watch", "all"},
    }[command]
    options = build_parser([command]).commands[command].options
    names = {name.lstrip("-").replace("-", "_") for name in options} - {"h", "help", "debug"}
    taken = set(inspect.signature(getattr(api, command)).parameters)
    assert taken - {"overrides", "progress"} == names - in_the_shell_alone


def test_arguments_become_command_line_options():
    arguments, line = api._parsed(
        "sweep",
        ["norm=bn,gn", "label=two words"],
        tune=["optimizer.lr=0.1,0.2", "batch=16,32"],
        until=0.3,
        again=True,
        store=Path("a b"),
        trials=None,
        dry_run=False,
    )
    assert line[:4] == ["normbench", "sweep", "norm=bn,gn", "label=two words"]
    assert arguments.overrides == ["norm=bn,gn", "label=two words"]
    assert arguments.tune == ["optimizer.lr=0.1,0.2", "batch=16,32"]
    assert (arguments.until, arguments.again, arguments.store) == (0.3, True, "a b")
    assert (arguments.trials, arguments.dry_run) == (None, False)


def test_functions_can_be_called_and_their_packages_imported():
    from normbench.report import load
    from normbench.sweep.grid import expand

    assert callable(load)
    assert callable(expand)
    assert inspect.signature(normbench.sweep) == inspect.signature(api.sweep)
    assert inspect.signature(normbench.report) == inspect.signature(api.report)
    assert normbench.run is api.run
    assert {"load", "report", "run", "sweep"} <= set(dir(normbench))
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        normbench.swep  # noqa: B018


# --- in a notebook --------------------------------------------------------------------------------


def test_notebook_shows_progress_in_one_output_and_results_as_tables(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        f"import normbench\nnormbench.run('norm=bn seed=0 {SMALL}')",
        f"normbench.sweep('norm=bn seed=0,1 {SMALL}')",
        "normbench.report()",
        "normbench.run('norm=gm')",
        f"normbench.run('norm=bn seed=0 {SMALL} epochs=1', progress=False).trained",
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in cells]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]), prepend=os.pathsep)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = nbclient.NotebookClient(
            notebook,
            timeout=300,
            allow_errors=True,
            resources={"metadata": {"path": str(tmp_path)}},
        )
        client.execute()
    run, sweep, report, mistake, silent = (cell.outputs for cell in notebook.cells)
    [live] = [output.data for output in run if output.output_type == "display_data"]
    assert "images/s" in live["text/plain"]  # of the last epoch: the output was replaced
    assert live["text/html"].count("<pre") == 1
    assert "test accuracy" in run[-1].data["text/html"]
    [live] = [output.data for output in sweep if output.output_type == "display_data"]
    assert live["text/plain"] == ""
    assert "[1/1] trained" in "".join(output.get("text", "") for output in sweep)
    assert "Test accuracy (%)" in sweep[-1].data["text/html"]
    [shown] = report
    assert "data:image/svg+xml" in shown.data["text/markdown"]
    [error] = mistake
    assert error.traceback == [f"UserError: {error.evalue}"]
    [end] = silent
    assert end.data["text/plain"] == "True"


def test_script_is_not_taken_for_a_notebook(monkeypatch):
    from normbench.cli.notebook import in_notebook

    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
