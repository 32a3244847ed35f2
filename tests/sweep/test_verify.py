"""``normbench verify`` on the fake engine: retrain runs and compare them with their records."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from normbench.cli import main
from normbench.cli.sweep_screen import VerifyScreen
from normbench.config import compose
from normbench.errors import UserError
from normbench.store import lock, records, verification
from normbench.store.store import Run, Store
from normbench.store.tuning import Trial, TunedCell, Tuning
from normbench.sweep import verify as module
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.local import Local
from normbench.sweep.executors.slots import Gpu
from normbench.sweep.observer import SweepView
from normbench.sweep.plan import plan
from normbench.sweep.verify import conditions, verify
from tests.waiting import wait_until


@pytest.fixture
def store(faults, grid, run_on, tmp_store) -> Store:
    """Return a store with four seeds of a cell, trained by the fake engine."""
    run_on(Local(workers=1, gpus=0), grid("seed=0,1,2,3"))
    result_store = Store(tmp_store)
    assert [run.status for run in result_store.runs()] == ["finished"] * 4
    return result_store


@pytest.fixture
def lines() -> list[str]:
    return []


def run_of(store: Store, seed: int) -> Run:
    return next(run for run in store.runs() if f"-s{seed}-" in run.name)


def reseal(run: Run) -> None:
    """Recompute all checksums of a run, as somebody who forges its numbers could."""
    meta = json.loads((run.path / "meta.json").read_text())
    summary = json.loads((run.path / "summary.json").read_text())
    config = records.digest((run.path / "config.yaml").read_bytes())
    metrics = records.digest((run.path / "metrics.jsonl").read_bytes())
    for name, value, others in (
        ("meta.json", meta, {"config.yaml": config}),
        ("summary.json", summary, {"config.yaml": config, "metrics.jsonl": metrics}),
    ):
        value.pop("checksums")
        (run.path / name).write_text(json.dumps(records.sealed(name, value, others)))


def edit_metric(run: Run, key: str, value: float) -> None:
    path = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1][key] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_json(run: Run, name: str, **changes) -> None:
    path = run.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (verification.NAME, module.LOCK)
    }


def test_runs_verify_as_equal_and_the_store_is_unchanged(store, lines) -> None:
    before = files_of(store.root)
    result = verify(store, sample=3, say=lines.append)
    assert result.exit_code == 0
    assert [*result.verdicts.values()] == ["equal"] * 3
    assert len(lines) == 3
    assert all("equal to the last bit: metrics of 3 epochs and weights" in line for line in lines)
    assert files_of(store.root) == before
    assert not store.foreign()
    verdicts = verification.newest(store)
    assert {*verdicts} == {*result.verdicts}
    assert verification.counted(verdicts, 4) == "3 of 4 runs trained again: 3 equal to the last bit"


def test_seed_determines_which_runs_are_chosen() -> None:
    names = [f"run{index:02d}" for index in range(40)]
    assert module._drawn(names, 5, 1) == module._drawn(names, 5, 1)
    assert module._drawn(names, 5, 1) != module._drawn(names, 5, 2)
    assert module._drawn(names, 99, 1) == names


def test_edited_metric_is_damage_and_with_new_checksums_fails_to_verify(store, lines) -> None:
    run = run_of(store, 2)
    edit_metric(run, "val_acc", 0.99)
    result = verify(store, [run.name], say=lines.append)
    assert result.exit_code == 1
    assert not result.verdicts
    assert lines == [f"{run.name}: damaged: cannot read metrics.jsonl: changed since the run ended "
                     "(checksum in summary.json)"]  # fmt: skip
    reseal(run)
    lines.clear()
    result = verify(store, [run.name], say=lines.append)
    assert result.exit_code == 1
    assert result.verdicts == {run.name: "differs"}
    assert "does not verify: val_acc of epoch 2 is 0.99 in the record, " in lines[0]
    assert "here, though the weights are equal" in lines[0]


def test_edited_test_accuracy_and_weights_hash_fail_to_verify(store, lines) -> None:
    first, second = run_of(store, 0), run_of(store, 1)
    edit_json(first, "summary.json", test_acc=0.995)
    edit_json(second, "summary.json", weights_sha256="0" * 64)
    reseal(first)
    reseal(second)
    result = verify(store, [first.name, second.name], say=lines.append)
    assert [*result.verdicts.values()] == ["differs", "differs"]
    line_of_run = {line.partition("] ")[2].partition(": ")[0]: line for line in lines}
    assert "test_acc is 0.995 in the record" in line_of_run[first.name]
    assert "the metrics are equal, but the weights differ" in line_of_run[second.name]


def test_runs_of_another_processor_are_judged_by_the_spread_over_seeds(store, lines) -> None:
    run = run_of(store, 2)
    again = run.metrics()[1]["val_acc"]
    edit_metric(run, "val_acc", again + 1e-6)
    edit_json(run, "meta.json", processor="Another CPU")
    reseal(run)
    result = verify(store, [run.name], say=lines.append)
    assert result.exit_code == 0
    assert result.verdicts == {run.name: "within"}
    assert "verifies within the spread of 3 other seeds: largest differences val_acc 1e-06 (seeds 0"
    assert "processor Another CPU recorded" in lines[0]
    edit_metric(run, "grad_norm", 1e6)
    reseal(run)
    result = verify(store, [run.name], say=lines.append)
    assert result.exit_code == 1
    assert result.verdicts == {run.name: "differs"}
    assert "grad_norm beyond the spread of 3 other seeds" in lines[1]
    assert verification.newest(store)[run.name]["verdict"] == "differs"  # the newest counts
    assert len(verification.read(store)) == 2


def test_run_of_another_version_is_unjudged_without_other_seeds(store, lines) -> None:
    run = run_of(store, 2)
    edit_metric(run, "val_acc", 0.5)
    edit_json(run, "meta.json", versions={"python": "3.0"})
    reseal(run)
    for seed in (0, 1):
        run_of(store, seed).move_aside("test")
    result = verify(store, [run.name], say=lines.append)
    assert result.exit_code == 0
    assert result.verdicts == {run.name: "unjudged"}
    assert "cannot be judged (1 other seed in the store, 2 are needed)" in lines[0]
    assert "python 3.0 recorded" in lines[0]


def test_conditions_list_differences_that_may_change_rounding() -> None:
    engine = {"backend": "tensorflow", "threads": 2, "shards": 2, "deterministic": True}
    meta = {"engine": engine, "processor": "A", "versions": {"jax": "1", "numpy": "2"}}
    assert conditions(meta, {**meta, "versions": {"numpy": "2"}, "host": "other"}) == []
    other = {**meta, "engine": {**engine, "threads": 4}, "versions": {"numpy": "3"}}
    assert conditions(meta, other) == ["threads 2 recorded, 4 here", "numpy 2 recorded, 3 here"]
    off, on = ({**meta, "engine": {**engine, "onednn": setting}} for setting in (False, True))
    assert conditions(off, on) == ["onednn False recorded, True here"]
    assert conditions(meta, on) == []  # an earlier version's record does not say
    gpu = {**meta, "engine": {**engine, "deterministic": False}}
    assert conditions(gpu, gpu) == ["the device is not deterministic"]
    moved = {**meta, "sessions": [{"host": "a"}, {"host": "b"}]}
    assert conditions(moved, meta) == ["recorded on 2 hosts in turn"]


def test_run_that_cannot_be_retrained_is_reported_in_one_line(store, lines, faults) -> None:
    failing, strange = run_of(store, 0), run_of(store, 1)
    faults(failing.name, "raise")
    config = strange.path / "config.yaml"
    config.write_text(config.read_text().replace("normbench.norms.", "os.path."))
    reseal(strange)
    result = verify(store, [failing.name, strange.name], say=lines.append)
    assert result.exit_code == 1
    assert not result.verdicts
    assert len(lines) == 2
    assert lines[0].startswith(f"[1/2] {strange.name}: cannot be trained again: ")
    assert "it is not imported" in lines[0]
    assert lines[1].startswith(f"[2/2] {failing.name}: cannot be trained again: ")


def test_edited_config_is_refused(store, lines) -> None:
    run = run_of(store, 1)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1\n", "seed: 7\n"))
    reseal(run)
    verify(store, [run.name], say=lines.append)
    assert "it was edited" in lines[0]


def test_interruption_keeps_the_verdicts_so_far(store, lines) -> None:
    def say(line: str) -> None:
        lines.append(line)
        signal.raise_signal(signal.SIGINT)

    result = verify(store, sample=4, say=say)
    assert result.interrupted
    assert len(result.verdicts) == 1
    assert {*verification.newest(store)} == {*result.verdicts}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_damaged_verification_record_is_named_and_set_aside(store, lines) -> None:
    path = store.root / verification.NAME
    path.write_text('{"schema": 1, "verifications": []}')
    verify(store, sample=1, say=lines.append)
    assert "verification.json: damaged: its checksum is missing" in lines[0]
    assert len(verification.read(store)) == 1
    assert (store.root / ".verification.json.damaged").is_file()


def test_verification_does_not_count_after_metrics_change(store) -> None:
    verify(store, sample=4, say=lambda line: None)
    run = run_of(store, 0)
    edit_metric(run, "val_acc", 0.5)
    reseal(run)
    assert len(verification.read(store)) == 4
    assert len(verification.newest(store)) == 3


def test_command_line_filters_and_counts(store, capsys) -> None:
    assert main(["verify", str(store.root), "--where", "seed in [1, 3]"]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("2 of 2 runs chosen, 2 to train; ")
    assert [line[:6] for line in lines] == ["[1/2] ", "[2/2] "]
    assert last == "2 of 2 runs trained again: 2 equal to the last bit"


def test_command_line_exits_with_1_if_a_run_does_not_verify(store, capsys) -> None:
    run = run_of(store, 2)
    edit_metric(run, "val_acc", 0.99)
    reseal(run)
    command = ["verify", str(store.root), "--where", "seed in [1, 2]"]
    for _ in range(2):  # the second time, the recorded verdict is used
        assert main(command) == 1
        assert capsys.readouterr().out.splitlines()[-1] == (
            "2 of 2 runs trained again: 1 equal to the last bit, 1 not verified"
        )


# --- trials of tuning -----------------------------------------------------------------------------


@pytest.fixture
def tuned(store) -> Store:
    """Return the store with a record that declares seeds 0 and 1 as trials."""
    trials = tuple(run_of(store, seed).name for seed in (0, 1))
    finals = tuple(run_of(store, seed).name for seed in (2, 3))
    folder = store.root / "sweeps" / "20261127-100000-abcd"
    folder.mkdir(parents=True)
    chosen = {"optimizer.lr": 0.1}
    cell = TunedCell(
        key="k", name="bn", differs="", dataset="digits", arch="resnet8", norm="bn", batch=16,
        epochs=3, trial_epochs=3, values=(chosen,), added=(), means=(0.5,), chosen=chosen,
        edges={}, problem="", final=finals, sweep=folder.name, keys=("optimizer.lr",),
        trials=tuple(Trial(name, chosen, n, "finished", 0.5) for n, name in enumerate(trials)),
        metric="val_acc", higher_is_better=True, seeds=(0, 1),
    )  # fmt: skip
    tuning = Tuning(folder.name, cell.keys, "val_acc", True, cell.seeds, 0, "the best", (cell,))
    tuning.write(folder)
    return store


def seeds_of(verdicts: dict[str, str]) -> list[int]:
    return sorted(int(re.search(r"-s(\d+)-", name).group(1)) for name in verdicts)


def test_tuning_trials_are_verified_only_on_request(tuned) -> None:
    assert seeds_of(verify(tuned, say=lambda line: None).verdicts) == [2, 3]
    every = verify(tuned, trials=True, say=lambda line: None)
    assert seeds_of(every.verdicts) == [0, 1, 2, 3]
    trial = run_of(tuned, 1).name
    assert [*verify(tuned, [trial], say=lambda line: None).verdicts] == [trial]


def test_command_line_includes_trials_by_option_or_filter(tuned, capsys) -> None:
    assert main(["verify", str(tuned.root)]) == 0
    assert capsys.readouterr().out.startswith(
        "2 of 2 runs chosen, 2 to train (2 trials of tuning left out, --trials includes them); "
    )
    assert main(["verify", str(tuned.root), "--where", "seed == 0"]) == 0
    assert capsys.readouterr().out.startswith("1 of 1 run chosen, 1 to train; ")
    assert main(["verify", str(tuned.root), "--trials"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 of 4 runs chosen, 1 to train; ")
    assert out.splitlines()[-1] == "4 of 4 runs trained again: 4 equal to the last bit"


def test_store_with_trials_only_says_how_to_include_them(tuned) -> None:
    for seed in (2, 3):
        run_of(tuned, seed).move_aside("test")
    with pytest.raises(UserError, match=r"only trials of tuning are finished .*\(--trials"):
        verify(tuned)


# --- resuming after an interruption ---------------------------------------------------------------


def epochs_trained(faults) -> int:
    return len((faults.folder / "epochs.log").read_text().splitlines())


def test_verified_runs_are_not_trained_again(store, lines, faults) -> None:
    assert len(verify(store, sample=2, say=lines.append).verdicts) == 2
    trained = epochs_trained(faults)
    lines.clear()
    result = verify(store, sample=4, say=lines.append)
    assert [*result.verdicts.values()] == ["equal"] * 4
    assert epochs_trained(faults) == trained + 2 * 3
    assert [line[:6] for line in lines] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    before = [line for line in lines if "(trained again 2" in line]
    assert before == lines[:2]
    assert len(verification.read(store)) == 4
    verify(store, sample=4, say=lines.append)
    assert epochs_trained(faults) == trained + 2 * 3
    verify(store, sample=4, again=True, say=lines.append)
    assert epochs_trained(faults) == trained + 2 * 3 + 4 * 3


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("summary.json", {"test_acc": 0.25}, "differs"),
        ("meta.json", {"processor": "Another CPU"}, "equal"),
        ("meta.json", {"tuned": {"sweep": "s", "metric": "m", "values": {}, "trials": []}}, None),
    ],
)
def test_verdict_is_discarded_once_the_run_has_changed(
    store, faults, name, changes, verdict
) -> None:
    run = run_of(store, 2)
    verify(store, [run.name], say=lambda line: None)
    trained = epochs_trained(faults)
    edit_json(run, name, **changes)
    reseal(run)
    assert (run.name in verification.newest(store)) == (verdict is None)
    result = verify(store, [run.name], say=lambda line: None)
    assert result.verdicts == {run.name: verdict or "equal"}
    assert epochs_trained(faults) == trained + (0 if verdict is None else 3)


@pytest.mark.parametrize("name", ["package_code", "versions", "processor"])
def test_verdict_of_other_code_or_another_machine_is_not_reused(
    store, faults, monkeypatch, name
) -> None:
    run = run_of(store, 2)
    verify(store, [run.name], say=lambda line: None)
    trained = epochs_trained(faults)
    monkeypatch.setattr(module, name, lambda: {} if name == "versions" else "another")
    assert verify(store, [run.name], say=lambda line: None).verdicts == {run.name: "equal"}
    assert epochs_trained(faults) == trained + 3


def test_unjudged_run_is_judged_once_there_are_more_seeds(store, lines, run_on, grid) -> None:
    run = run_of(store, 2)
    edit_metric(run, "val_acc", run.metrics()[1]["val_acc"] + 1e-6)
    edit_json(run, "meta.json", processor="Another CPU")
    reseal(run)
    for seed in (0, 1):
        run_of(store, seed).move_aside("test")
    assert verify(store, [run.name], say=lines.append).verdicts == {run.name: "unjudged"}
    assert verify(store, [run.name], say=lines.append).verdicts == {run.name: "unjudged"}
    assert "--again repeats this" in lines[1]
    run_on(Local(workers=1, gpus=0), grid("seed=0,1"))
    assert verify(store, [run.name], say=lines.append).verdicts == {run.name: "within"}


FAKESWEEP = Path(__file__).with_name("fakesweep.py")


def start_verify(store: Store, seconds_per_step: float) -> subprocess.Popen[str]:
    """Start ``normbench verify`` on the store's four runs in a new process."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "FAKE_STEP_SECONDS": str(seconds_per_step)}
    environment["PYTHONPATH"] = str(root)
    return subprocess.Popen(
        [sys.executable, str(FAKESWEEP), "verify", str(store.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def scratch_folders(store: Store) -> list[Path]:
    return [*Path(tempfile.gettempdir()).glob(f"{module._scratch_prefix(store)}*")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_same_command_resumes_after_interrupt_or_kill(store, faults, number) -> None:
    process = start_verify(store, 0.05)
    wait_until(lambda: len(verification.read(store)) > 0)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), output
    assert (number == signal.SIGINT) == ("the same command resumes" in output)
    compared = len(verification.read(store))
    assert 0 < compared < 4
    assert len(scratch_folders(store)) == (number == signal.SIGKILL)
    process = start_verify(store, 0.002)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"4 of 4 runs chosen, {4 - compared} to train" in output
    assert output.splitlines()[-1] == "4 of 4 runs trained again: 4 equal to the last bit"
    assert len(verification.read(store)) == 4
    assert not scratch_folders(store)  # the killed process's folder is removed, too


def test_concurrent_verify_is_refused_in_one_line(store, capsys) -> None:
    process = start_verify(store, 0.05)
    try:
        wait_until(lambda: lock.is_held(store.root / module.LOCK))
        assert main(["verify", str(store.root)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"normbench: store {store.root} is being verified by process ")
        assert error.count("\n") == 1
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert main(["verify", str(store.root), "--sample", "1"]) == 0
    assert not store.foreign()


# --- output ---------------------------------------------------------------------------------------


def test_progress_is_reported_to_a_sweep_view(store, lines) -> None:
    events: list[tuple[str, object]] = []

    class View(SweepView):
        def phase(self, text, trials=False):
            events.append(("phase", text))

        def training(self, plan, slots, store):
            events.append(("training", [cell.seconds is not None for cell in plan.cells]))
            return super().training(plan, slots, store)

        def started(self, cell, where):
            events.append(("started", cell.name))

        def progress(self, cell, facts):
            events.append(("epoch", facts.get("epoch")))

        def ended(self, cell, result):
            events.append(("ended", cell.name))

    verify(store, sample=2, say=lines.append, view=View())
    kinds = [kind for kind, _ in events]
    assert kinds[:3] == ["phase", "training", "started"]
    assert events[1] == ("training", [True, True])  # estimated from runs on this machine
    assert re.fullmatch(
        r"2 of 4 runs chosen, 2 to train; about .*, one after another", events[0][1]
    )
    assert kinds.count("started") == kinds.count("ended") == 2
    assert {fact for kind, fact in events if kind == "epoch"} >= {0, 1, 2, 3}


def test_log_of_a_long_verification_has_a_line_per_minute(grid, tmp_store, monkeypatch) -> None:
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("normbench.cli.sweep_screen.time", clock)
    screen = VerifyScreen(Console(file=io.StringIO(), width=80), live=False)
    planned = plan(grid("seed=0,1"), Store(tmp_store))
    first, second = planned.cells
    with screen.training(planned, 1, Store(tmp_store)):
        screen.started(first, "cpu 2")
        screen.ended(first, CellResult("trained", seconds=100.0))
        screen.line(f"[1/2] {first.name}: equal to the last bit")
        screen.started(second, "cpu 2")
        now[0] += 15
        screen.progress(second, {"epoch": 1, "epochs": 3, "val_acc": 0.5})
        now[0] += 60
        screen.idle()
    assert screen.console.file.getvalue().splitlines() == [
        f"[1/2] {first.name}: equal to the last bit",
        "1:15 elapsed; 1 of 2 runs done; 0:25 left; s1 (epoch 1/3, val acc 50.00%)",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sample", "0"], "--sample 0: must be at least 1"),
        (["--sample", "x"], "invalid int value: 'x'"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--store", "/nowhere"], "there is no store '/nowhere'"),
        (["--where", "norm == bnn"], "did you mean 'bn'?"),
    ],
)
def test_mistakes_are_refused_in_one_line(store, words, message, capsys, monkeypatch) -> None:
    monkeypatch.setenv("NORMBENCH_STORE", str(store.root))
    assert main(["verify", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_empty_store_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="is finished: nothing to train again"):
        verify(Store(tmp_path))


@pytest.mark.parametrize(("devices", "visible"), [(1, "0"), (2, "0,1"), (4, "0,1,2")])
def test_run_is_verified_on_as_many_gpus_as_it_had(devices, visible, monkeypatch):
    gpus = [Gpu(str(index), None) for index in range(3)]
    monkeypatch.setattr(module, "visible_gpus", lambda: gpus)
    config = compose(["backend=jax", "batch=64", f"devices={devices}"])
    slot = module._slot(config, {"devices": [f"gpu:{i} H200" for i in range(devices)]})
    assert slot.is_gpu
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == visible
