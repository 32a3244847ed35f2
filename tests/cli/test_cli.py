"""The command line called in-process: exit codes and one-line errors."""

import json
import re
import shlex

import pytest

from normbench.cli import COMMANDS, main, parse
from normbench.store import run as runfolder
from normbench.store import store
from normbench.sweep.plan import SweepPlan


@pytest.fixture
def small_run(tmp_store):
    return [
        "dataset=digits",
        "dataset.train_size=160",
        "arch=mlp_sigmoid",
        "arch.units=8",
        "batch=16",
        "epochs=1",
        f"store={tmp_store}",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["rnu"], "unknown command 'rnu': did you mean 'run'?"),
        (["archs"], "unknown command 'archs': `normbench explain arch` lists the choices of arch="),
        (["probe"], "unknown command 'probe': `normbench explain probe` lists the choices of"),
        (["run", "--resum"], "unknown option '--resum': did you mean --resume?"),
        (["run", "norm=gm"], "unknown norm 'gm': did you mean 'gn'?"),
        (["norms", "gn", "foo"], "norms cannot take 'foo' (see normbench norms --help)"),
        (
            ["doctor", "--where", "x"],
            "normbench doctor has no option --where: normbench report, no",
        ),
        (["data", "list", "--from=x"], "normbench data list has no option --from: normbench data "),
        (["--store", "x", "list"], "--store belongs after the command, as in: normbench run --st"),
        (
            ["list", "--stroe", "x"],
            "unknown option '--stroe': did you mean --store? (see normbench l",
        ),
        (["report", "a", "--store", "b"], "two stores are named: 'a' and 'b'"),
        (["run", "store=a", "--store", "b"], "two stores are named: 'a' and 'b'"),
        (["run", "store="], "the store's name is empty"),
        (["list", "--store", ""], "the store's name is empty"),
        (["report", ""], "the store's name is empty"),
        (["data", "import", "cifar11", "--from", "x"], "unknown dataset 'cifar11'"),
        (["data", "prepair", "mnist"], "did you mean 'prepare'?"),
        (["show", "x", "--store", "/nonexistent"], "unknown run 'x'"),
        (["run", "dataset=digits", "--resume"], "to resume"),
        (["report", "--where", ""], "--where is empty: give it a value or leave it out"),
        (["report", "--where="], "--where is empty"),
        (["report", "--by", ""], "--by is empty"),
        (["run", "norm=bn", ""], "an argument is empty: give it a value or leave it out"),
        (["report", "/nonexistent"], "there is no store '/nonexistent'"),
        (["report", "--where", "norm in [bn"], "cannot read --where 'norm in [bn'"),
        (["report", "--target", "95"], "--target must be an accuracy above 0 and up to 1, got 95"),
        (["report", "--out", "/dev/null/x"], "cannot write to '/dev/null/x': /dev/null is a file"),
        (["diff", "a", "b", "--out", "/dev/null"], "/dev/null is a file, not a folder"),
        (["export", "--out", "/dev/null/x.csv"], "/dev/null is a file, not a folder"),
        (["export", "--out", "/tmp"], "cannot write '/tmp': it is a folder"),
        (["export", "--out", ""], "--out is empty"),
        (["export", "--where", "norm = bn"], "cannot read --where 'norm = bn'"),
        (["doctor", "--config-dir", ""], "--config-dir is empty"),
        (["doctor", "--config-dir", "/nonexistent"], "--config-dir '/nonexistent' is not a folder"),
        (["norms", "--config-dir", "/nonexistent"], "--config-dir '/nonexistent' is not a folder"),
        (["data", "import", "mnist", "--from", ""], "--from is empty"),
        (["list", "--store", "/nonexistent"], "there is no store '/nonexistent'"),
        (["list", "--store", "/nonexistent", "--json"], "there is no store '/nonexistent'"),
        (["list", "--store", "~nosuchuser/x"], "no home folder of the user '~nosuchuser'"),
        (["run", "store=~nosuchuser/x"], "no home folder of the user '~nosuchuser'"),
        (["sweep", "status", "--store", "~nosuchuser/x"], "no home folder of the user"),
        (["data", "import", "mnist", "--from", "~nosuchuser/x"], "no home folder of the user"),
        (["sweep", "seed=range(3,0)"], "'seed=range(3,0)' has no values"),
        (["sweep", "seed=range(0,0)"], "'seed=range(0,0)' has no values"),
        (["sweep", "batch=range(16,32,0)"], "a step of 0 never leaves 16"),
        (["sweep", "seed=range(0,999999999999)"], "at most 100,000 runs"),
        (["run", "batch=99999999999999", "accumulate=3"], "batch must be below 2147483648"),
        (["run", "dataset=digits", "epochs=99999999999999"], "epochs must be below 2147483648"),
    ],
)
def test_user_error_is_one_line_with_exit_code_2(command, message, capsys, tmp_path, monkeypatch):
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


def test_missing_data_error_says_how_to_get_it(capsys, tmp_path, monkeypatch):
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
    assert re.match(r"already finished \(test accuracy \d+\.\d\d %\): nothing to train\n", again)
    assert main(["list", "--store", str(tmp_store), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"] == "finished"
    assert main(["show", row["signature"], "--store", str(tmp_store)]) == 0
    shown = capsys.readouterr().out
    assert "mlp_sigmoid" in shown
    assert row["signature"] in shown


def test_sweep_trains_each_cell_once_and_reports(
    small_run, tmp_store, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("normbench.report.report.draw", lambda *_: [])  # figures take long
    sweep = ["sweep", *small_run, "norm=bn,gn", "norm.epsilon=0.001", "executor=inline"]
    assert main([*sweep, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("missing") == 2
    assert main(sweep) == 0
    assert "2 runs: 2 trained" in capsys.readouterr().out
    assert main(sweep) == 0
    assert "2 runs: 2 skipped" in capsys.readouterr().out
    out = tmp_path / "report"
    assert main(["report", str(tmp_store), "--out", str(out)]) == 0
    assert (out / "index.html").is_file()


def test_invalid_cell_is_refused_before_any_cell_trains(small_run, tmp_store, capsys):
    sweep = ["sweep", *small_run, "norm=gn", "norm.groups=3,2", "executor=inline"]
    assert main(sweep) == 2
    captured = capsys.readouterr()
    assert "groups=3 does not divide" in captured.out
    assert "1 run cannot be trained: --skip-invalid" in captured.err
    assert not list(tmp_store.iterdir())
    assert main([*sweep, "--skip-invalid"]) == 0
    assert "1 trained, 1 invalid" in capsys.readouterr().out


def test_print_config_is_yaml(capsys):
    import yaml

    assert main(["run", "norm=gn_ws", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["norm"]["weight"]["name"] == "ws"


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_training_without_overrides_is_refused_with_the_usage(
    command, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for words in ([command], [command, "--store", "there"]):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out.startswith(f"usage: normbench {command} ")
        assert captured.err == (
            f"normbench: {command} needs KEY=VALUE words, as dataset=digits arch=resnet8 epochs=5\n"
        )
    assert not list(tmp_path.iterdir())


def store_in_config(words, capsys):
    """Return the store in a run's config."""
    import yaml

    assert main(["run", *words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)["store"]


def test_store_can_be_set_by_override_option_or_environment(capsys, monkeypatch):
    for words in (["store=a b"], ["--store", "a b"], ["--store=a b", "batch=16"]):
        assert store_in_config(words, capsys) == "a b"
    assert store_in_config(["--store", "it's, 'x'"], capsys) == "it's, 'x'"
    monkeypatch.setenv("NORMBENCH_STORE", "/elsewhere")
    assert store_in_config([], capsys) == "/elsewhere"
    assert store_in_config(["--store", "here"], capsys) == "here"


@pytest.mark.parametrize(
    "words",
    [
        ["list", "STORE"],
        ["list", "store=STORE"],
        ["list", "--store", "STORE"],
        ["report", "--store", "STORE"],
        ["export", "--store", "STORE"],
        ["show", "x", "--store", "STORE"],
        ["diff", "x", "y", "--store", "STORE"],
        ["diagnose", "x", "--store", "STORE"],
        ["sweep", "status", "--store", "STORE"],
        ["sweep", "status", "store=STORE"],
        ["sweep", "--store", "STORE", "status"],
    ],
)
def test_every_command_reads_the_named_store(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    main([word.replace("STORE", "mine") for word in words])
    captured = capsys.readouterr()
    assert "mine" in captured.out + captured.err
    monkeypatch.setenv("NORMBENCH_STORE", "mine")
    main([w for w in words if "STORE" not in w and w != "--store"])
    assert capsys.readouterr() == captured


def test_checksum_note_covers_only_runs_that_the_command_read(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runfolder, "without_checksums", {tmp_path / "read-by-a-notebook"})
    monkeypatch.setattr(store, "without_checksums", runfolder.without_checksums)
    assert main(["list", "--store", str(tmp_path)]) == 0
    assert "checksums" not in capsys.readouterr().err


def test_sweep_uses_the_store_option(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["sweep", "dataset=digits", "arch=resnet8", "--dry-run", "executor=inline"]
    monkeypatch.setattr("normbench.sweep.phases.problems", lambda cells, *rest: {})
    chosen = []
    monkeypatch.setattr(
        "normbench.sweep.phases.plan",
        lambda configs, store, *rest: chosen.append(str(store.root)) or SweepPlan(()),
    )
    assert main([*words, "--store", "mine"]) == 0
    assert chosen == ["mine"]


def test_printed_commands_are_shell_quoted(tmp_path):
    from normbench.cli.show import run_page
    from normbench.report.report import text
    from normbench.store.store import Store

    run = Store(tmp_path).run("digits-resnet8-bn-b16-s0-00000000")
    command = ["normbench", "run", "label=a b", "probe=[gradients,smoothness]"]
    run.create({"signature": "00000000"}, {"status": "failed", "command": command})
    shown = " ".join(text(run_page(run), 200).split())
    assert "normbench run 'label=a b' 'probe=[gradients,smoothness]'" in shown


def test_finished_run_lists_probes_and_loggers_it_was_trained_without(tmp_path, monkeypatch):
    from normbench.config import compose
    from normbench.engine.diagnose import trained_without
    from normbench.store.store import Store

    monkeypatch.chdir(tmp_path)
    trained = compose(["probe=gradients", "label=old", "store=my runs"])
    run = Store("my runs").run(trained)
    run.create({**trained.to_dict(), "signature": trained.signature}, {"status": "finished"})
    assert trained_without([(trained, run)]) == []
    overrides = ["probe=[gradients,train_gap]", "logger=tensorboard", "label=new", "store=my runs"]
    requested = compose(overrides)
    assert trained_without([(requested, run)]) == [
        "this run was trained without the probes train_gap; to measure them in its checkpoints: "
        f"normbench diagnose {requested.signature} --probe train_gap --store 'my runs'",
        "this run was trained without logger=tensorboard, which writes only during training; "
        "--again trains again",
        "this run was trained with label='old', and keeps it",
    ]
    assert trained_without([(requested, run)], "m y")[0].endswith(" --config-dir 'm y'")
    assert trained_without([(requested, run)] * 2)[0].startswith(
        "2 complete runs were trained without"
    )
    checkpoint = {"checkpoint": "last", "epoch": 1, "step": 1}
    run.append_diagnosis({"probe": "train_gap", "values": {"acc": 0.5}, **checkpoint})
    assert not [line for line in trained_without([(requested, run)]) if "probes" in line]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_examples_are_valid_commands(command, capsys):
    """Every command in a help text parses and needs no more shell quoting than it has."""
    with pytest.raises(SystemExit):
        main([*filter(None, [command]), "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        if line.startswith("normbench "):
            words = shlex.split(line, comments=True)
            assert parse(words[1:]).command == words[1]
            unquoted = re.sub(r"'[^']*'", "", line.partition("#")[0])
            assert not set("()[]{}*?;&|<>~$") & set(unquoted), line
