"""``normbench diagnose``: what it measures, stores, skips and refuses."""

from __future__ import annotations

import json
import shutil

import keras
import numpy as np
import pytest
import yaml

from normbench.cli import main
from normbench.config import compose
from normbench.engine.diagnose import diagnose
from normbench.engine.reuse import WarmState
from normbench.engine.train import train
from normbench.report import load
from normbench.store import records as runrecords
from normbench.store.store import Store
from tests.marks import slow_except

PROBES = ("train_gap", "estimation_shift")

SHARED = [
    "run",
    "dataset=digits",
    "dataset.train_size=160",
    "dataset.validation=100",
    "arch=mlp_sigmoid",
    "arch.units=7",
    "arch.layers=2",
    "norm=bn",
    "batch=16",
    "epochs=3",
    "schedule.warmup=0",
    "optimizer.lr=1",
    f"backend={keras.backend.backend()}",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with two runs, one trained with probes and one without. Not to be changed."""
    root = tmp_path_factory.mktemp("diagnosed") / "runs"

    def config(*overrides):
        return compose([*SHARED[1:], f"store={root}", *overrides])

    warm = WarmState()
    plain = train(config("seed=1"), warm=warm).run
    probes = [f"probe=[{','.join(PROBES)}]", "probe.train_gap.every=1"]
    probed = train(config(*probes), warm=warm).run
    return root, probed.name, plain.name


@pytest.fixture
def store(trained, tmp_path):
    root, probed, plain = trained
    shutil.copytree(root, tmp_path / "runs")
    return Store(tmp_path / "runs"), probed, plain


def silent(line):
    pass


@pytest.mark.parametrize(
    "group",
    slow_except(
        ["norm.weight"],
        ["optimizer", "norm.weight", "dataset", "probe.train_gap"],
    ),
)
def test_untrusted_run_folder_executes_no_code(group, store, tmp_path, monkeypatch, capsys):
    """Commands that read a run folder import nothing that only the folder names."""
    runs, probed, _ = store
    run = runs.run(probed)
    (tmp_path / "stranger.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n"
        "def run(**anything):\n    pathlib.Path(__file__).with_name('called').touch()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tree, meta = run.config, run.meta
    options = tree
    for key in group.split("."):
        options = options[key]
    options["_target_"] = "stranger.run"
    (run.path / "summary.json").unlink()  # as if interrupted, so that it can be resumed
    (run.path / "config.yaml").write_text(yaml.safe_dump(tree))
    content = (run.path / "config.yaml").read_bytes()
    # An attacker adapts the checksums.
    seals = {"config.yaml": runrecords.digest(content)}
    run._write_json("meta.json", {**meta, "status": "interrupted"}, seals)

    def files():
        return sorted(path.name for path in tmp_path.iterdir())

    before = files()
    at = ["--store", str(runs.root)]
    assert main(["diagnose", probed, *at]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"normbench: run {probed} names 'stranger.run' at {group}, which no")
    assert main(["diagnose", probed, "--config-dir", str(tmp_path), *at]) == 2
    main(["show", probed, *at])
    main(["list", *at])
    main(["report", str(runs.root), "--out", str(tmp_path / "runs" / "report")])
    main(["export", str(runs.root), "--out", str(tmp_path / "runs" / "all.csv")])
    with monkeypatch.context() as quick:
        quick.setattr("normbench.engine.train._train_locked", lambda *_: 1 / 0)
        main([*SHARED, f"store={runs.root}", "probe=[train_gap,estimation_shift]", "--resume"])
    main(["sweep", "--dry-run", *SHARED[1:], f"store={runs.root}", "seed=0,1,2"])
    assert files() == before


def test_diagnosis_of_a_checkpoint_equals_values_of_the_run(store):
    """The values from the last checkpoint equal those measured during training, to the last bit."""
    runs, probed, _ = store
    outcome = diagnose(runs, [probed], PROBES, again=True, say=silent)
    assert outcome.exit_code == 0
    row = runs.run(probed).metrics()[-1]
    diagnoses = {(line["probe"], line["checkpoint"]): line for line in runs.run(probed).diagnoses()}
    assert set(diagnoses) == {
        (probe, checkpoint) for probe in PROBES for checkpoint in ("last", "best")
    }
    for probe in PROBES:
        line = diagnoses[probe, "last"]
        inside = {
            key.split("/", 2)[2]: value
            for key, value in row.items()
            if key.startswith(f"probe/{probe}/")
        }
        assert inside
        assert line["values"] == inside
        assert (line["epoch"], line["step"]) == (row["epoch"], row["step"])
    assert set(diagnoses["train_gap", "last"]["options"]) == {"images"}
    assert diagnoses["train_gap", "last"]["time"].endswith("Z")


def test_known_values_are_not_measured_again(store):
    runs, probed, plain = store
    info = runs.run(probed).checkpoint_info(best=True)
    inside = diagnose(runs, [probed], ["train_gap"], say=silent)
    assert inside.measured == 0  # the run measured it after each epoch
    assert not (runs.run(probed).path / "diagnosis.jsonl").exists()
    assert {line["epoch"] for line in inside.lines[probed]} == {3, info["epoch"]}
    first = diagnose(runs, [plain], ["train_gap"], say=silent)
    assert first.measured == 2
    content = (runs.run(plain).path / "diagnosis.jsonl").read_bytes()
    second = diagnose(runs, [plain], ["train_gap"], say=silent)
    assert second.measured == 0
    assert second.lines == first.lines
    assert (runs.run(plain).path / "diagnosis.jsonl").read_bytes() == content
    other = diagnose(runs, [plain], ["train_gap"], ["probe.train_gap.images=32"], say=silent)
    assert other.measured == 2
    assert diagnose(runs, [plain], ["train_gap"], again=True, say=silent).measured == 2


def test_only_the_diagnoses_of_a_run_change(store):
    runs, _, plain = store
    folder = runs.run(plain).path
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    diagnose(runs, [plain], PROBES, say=silent)
    now = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert {f.name for f in set(now) - set(before)} <= {"diagnosis.jsonl", "lock", "lock.json"}
    for file, content in before.items():
        if not file.name.startswith("lock"):
            assert now[file] == content


def test_report_includes_diagnoses(store):
    runs, probed, plain = store
    name = "probe/train_gap/loss_gap"
    before = load(runs).curves
    assert before[before["run"] == plain][name].isna().all()
    diagnose(runs, [plain, probed], ["train_gap"], say=silent)
    lines = {line["epoch"]: line["values"]["loss_gap"] for line in runs.run(plain).diagnoses()}
    curves = load(runs).curves
    gaps = curves[curves["run"] == plain].set_index("epoch")[name]
    for epoch in (1, 2, 3):
        if epoch in lines:
            assert gaps[epoch] == lines[epoch]
        else:
            assert np.isnan(gaps[epoch])
    measured = curves[curves["run"] == probed][name]
    inside = [row[name] for row in runs.run(probed).metrics()]
    assert list(measured) == inside


def test_command_prints_values_for_a_pipe(store, capsys):
    runs, _, plain = store
    command = ["diagnose", plain, "--probe", "train_gap", "--store", str(runs.root)]
    assert main([*command, "probe.train_gap.images=64"]) == 0
    printed = capsys.readouterr()
    head, *lines = printed.out.splitlines()
    assert head.split("\t") == ["run", "checkpoint", "epoch", "probe", "name", "value"]
    assert len(lines) == 12
    assert "train_gap at epoch 3 measured in" in printed.err
    line = json.loads((runs.run(plain).path / "diagnosis.jsonl").read_text().splitlines()[0])
    assert line["options"] == {"images": 64}
    assert lines[0].split("\t")[-1] == str(line["values"]["training_loss"])


def test_page_has_a_table_for_the_network_and_one_for_its_layers(store):
    from rich.console import Console

    from normbench.cli.diagnose import page

    runs, probed, _ = store
    outcome = diagnose(runs, [probed], ["estimation_shift"], say=silent)
    console = Console(width=70)
    with console.capture() as captured:
        console.print(page(outcome.lines, width=70, differs={probed: "optimizer.lr=0.1"}))
    text = captured.get()
    assert text.splitlines()[0].split() == [probed, "optimizer.lr=0.1"]
    assert "last, epoch 3" in text
    assert "population_acc" in text
    assert "hidden2_norm" in text
    assert "more columns" in text
    assert max(map(len, text.splitlines())) <= 70


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuchrun"], "unknown run 'nosuchrun'"),
        (["RUN", "--probe", "train_gpa"], "'train_gpa': did you mean 'train_gap'?"),
        (["RUN", "--probe", "train_gap", "batch=3"], "diagnose only takes options of probes"),
        (["RUN", "--probe", "train_gap", "probe.train_gap.image=3"], "'probe.train_gap.images'"),
        (["RUN", "--probe", "train_gap", "probe.activations.images=3"], "unknown probe 'activa"),
        (["--probe", "train_gap"], "diagnose needs a run"),
        (["RUN", "--probe", "activations", "probe.activations.layers=[hiden]"], "'hiden'"),
    ],
)
def test_invalid_command_is_one_line_and_exit_code_2(words, message, store, capsys):
    runs, _, plain = store
    words = [plain if word == "RUN" else word for word in words]
    assert main(["diagnose", *words, "--store", str(runs.root)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (runs.run(plain).path / "diagnosis.jsonl").exists()


def test_run_without_checkpoint_is_refused(store, capsys):
    runs, probed, plain = store
    shutil.rmtree(runs.run(plain).path / "checkpoint")
    words = ["diagnose", probed, plain, "--store", str(runs.root), "--probe", "estimation_shift"]
    assert main(words) == 2
    assert f"run {plain} has no checkpoint to diagnose" in capsys.readouterr().err
    assert not (runs.run(probed).path / "diagnosis.jsonl").exists()


def test_damaged_checkpoint_does_not_stop_other_runs(store, capsys):
    runs, probed, plain = store
    for file in (runs.run(plain).path / "checkpoint").iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    words = ["diagnose", plain, probed, "--store", str(runs.root), "--probe", "estimation_shift"]
    assert main([*words, "--again"]) == 1
    captured = capsys.readouterr()
    assert f"{plain}: " in captured.err
    assert runs.run(probed).diagnoses()
    assert not runs.run(plain).diagnoses()
