"""The command line in this process: exit codes and one-line errors."""

import json
import re

import pytest

from normbench.cli import main


@pytest.fixture
def small_run(tmp_store):
    return [
        "dataset=digits",
        "dataset.train_size=160",
        "arch=resnet8",
        "arch.width=8",
        "batch=16",
        "epochs=1",
        f"store={tmp_store}",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["rnu"], "unknown command 'rnu': did you mean 'run'?"),
        (["run", "--resum"], "unknown option '--resum': did you mean --resume?"),
        (["run", "norm=gm"], "unknown norm 'gm': did you mean 'gn'?"),
        (["list", "foo"], "list cannot take 'foo'"),
        (["data", "import", "cifar11", "--from", "x"], "unknown dataset 'cifar11'"),
        (["data", "prepair", "mnist"], "did you mean 'prepare'?"),
        (["show", "x", "--store", "/nonexistent"], "unknown run 'x'"),
        (["run", "dataset=digits", "--resume"], "to resume"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("normbench: ")
    assert message in captured.err


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    from normbench.errors import UserError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        main(["run", "norm=gm", "--debug"])


def test_missing_data_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    assert main(["run", "norm=gn_ws", "batch=16"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for way in (
        "normbench data prepare cifar10",
        "normbench data import cifar10 --from",
        "dataset=digits",
    ):
        assert way in error


def test_run_twice_list_show(small_run, tmp_store, capsys):
    assert main(["run", *small_run]) == 0
    first = capsys.readouterr().out
    assert re.search(r"epoch 1/1 .* images/s", first)
    assert str(tmp_store) in first
    assert main(["run", *small_run]) == 0
    again = capsys.readouterr().out
    assert "the run exists, nothing was trained" in again
    assert main(["list", "--store", str(tmp_store), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"] == "finished"
    assert main(["show", row["signature"], "--store", str(tmp_store)]) == 0
    shown = capsys.readouterr().out
    assert "resnet8" in shown
    assert row["signature"] in shown


def test_sweep_trains_each_cell_once_and_reports(small_run, tmp_store, tmp_path, capsys):
    sweep = ["sweep", *small_run, "norm=bn,gn", "norm.epsilon=0.001", "executor=inline"]
    assert main([*sweep, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("missing") == 2
    assert main(sweep) == 0
    assert "2 cells: 2 trained" in capsys.readouterr().out
    assert main(sweep) == 0
    assert "2 cells: 2 skipped" in capsys.readouterr().out
    out = tmp_path / "report"
    assert main(["report", str(tmp_store), "--out", str(out)]) == 0
    assert (out / "index.html").is_file()


def test_a_cell_that_cannot_be_is_refused_before_the_others_train(small_run, tmp_store, capsys):
    sweep = ["sweep", *small_run, "norm=gn", "norm.groups=3,2", "executor=inline"]
    assert main(sweep) == 2
    captured = capsys.readouterr()
    assert "groups=3 does not divide" in captured.out
    assert "1 cell cannot be trained: --skip-invalid" in captured.err
    assert not list(tmp_store.iterdir())
    assert main([*sweep, "--skip-invalid"]) == 0
    assert "1 trained, 1 invalid" in capsys.readouterr().out


def test_print_config_is_yaml(capsys):
    import yaml

    assert main(["run", "norm=gn_ws", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["norm"]["weight"]["name"] == "ws"
