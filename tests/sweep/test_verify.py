"""Runs that are trained again and compared with their records, on the fake engine."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from normbench.cli import main
from normbench.errors import UserError
from normbench.store import records, verification
from normbench.store.store import Run, Store
from normbench.sweep import verify as module
from normbench.sweep.executors.local import Local
from normbench.sweep.verify import conditions, verify


@pytest.fixture
def store(faults, grid, run_on, tmp_store) -> Store:
    """Return a store with four seeds of a cell, trained by the fake engine."""
    run_on(Local(workers=1, gpus=0), grid("seed=0,1,2,3"))
    found = Store(tmp_store)
    assert [run.status for run in found.runs()] == ["finished"] * 4
    return found


@pytest.fixture
def lines() -> list[str]:
    return []


def run_of(store: Store, seed: int) -> Run:
    return next(run for run in store.runs() if f"-s{seed}-" in run.name)


def reseal(run: Run) -> None:
    """Compute all checksums of a run again, as somebody who edits its numbers could."""
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
        if path.is_file() and path.name != verification.NAME
    }


def test_runs_are_equal_on_the_same_machine_and_the_store_is_left_as_it_was(store, lines) -> None:
    before = files_of(store.root)
    result = verify(store, sample=3, say=lines.append)
    assert result.exit_code == 0
    assert [*result.verdicts.values()] == ["equal"] * 3
    assert len(lines) == 3
    assert all("equal to the last bit: metrics of 3 epochs and weights" in line for line in lines)
    assert files_of(store.root) == before
    assert not store.foreign()
    found = verification.newest(store)
    assert {*found} == {*result.verdicts}
    assert verification.counted(found, 4) == "3 of 4 runs trained again: 3 equal to the last bit"


def test_a_seed_decides_which_runs_are_chosen() -> None:
    names = [f"run{index:02d}" for index in range(40)]
    assert module._drawn(names, 5, 1) == module._drawn(names, 5, 1)
    assert module._drawn(names, 5, 1) != module._drawn(names, 5, 2)
    assert module._drawn(names, 99, 1) == names


def test_an_edited_metric_is_damage_without_checksums_and_refuted_with_them(store, lines) -> None:
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


def test_an_edited_test_accuracy_and_weights_hash_are_refuted(store, lines) -> None:
    first, second = run_of(store, 0), run_of(store, 1)
    edit_json(first, "summary.json", test_acc=0.995)
    edit_json(second, "summary.json", weights_sha256="0" * 64)
    reseal(first)
    reseal(second)
    result = verify(store, [first.name, second.name], say=lines.append)
    assert [*result.verdicts.values()] == ["differs", "differs"]
    said = {line.partition(": ")[0]: line for line in lines}
    assert "test_acc is 0.995 in the record" in said[first.name]
    assert "the metrics are equal, but the weights differ" in said[second.name]


def test_another_processor_is_judged_by_the_spread_over_seeds(store, lines) -> None:
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


def test_without_other_seeds_nothing_is_judged(store, lines) -> None:
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


def test_conditions_name_what_may_change_the_rounding() -> None:
    engine = {"backend": "tensorflow", "threads": 2, "shards": 2, "deterministic": True}
    meta = {"engine": engine, "processor": "A", "versions": {"jax": "1", "numpy": "2"}}
    assert conditions(meta, {**meta, "versions": {"numpy": "2"}, "host": "other"}) == []
    other = {**meta, "engine": {**engine, "threads": 4}, "versions": {"numpy": "3"}}
    assert conditions(meta, other) == ["threads 2 recorded, 4 here", "numpy 2 recorded, 3 here"]
    gpu = {**meta, "engine": {**engine, "deterministic": False}}
    assert conditions(gpu, gpu) == ["the device computes in no fixed order"]
    moved = {**meta, "sessions": [{"host": "a"}, {"host": "b"}]}
    assert conditions(moved, meta) == ["recorded on 2 hosts in turn"]


def test_a_run_that_cannot_be_trained_is_one_line(store, lines, faults) -> None:
    failing, strange = run_of(store, 0), run_of(store, 1)
    faults(failing.name, "raise")
    config = strange.path / "config.yaml"
    config.write_text(config.read_text().replace("normbench.norms.", "os.path."))
    reseal(strange)
    result = verify(store, [failing.name, strange.name], say=lines.append)
    assert result.exit_code == 1
    assert not result.verdicts
    assert len(lines) == 2
    assert "nothing of it is imported" in lines[0]
    assert lines[1].startswith(f"{failing.name}: cannot be trained again: ")


def test_an_edited_config_is_refused(store, lines) -> None:
    run = run_of(store, 1)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1\n", "seed: 7\n"))
    reseal(run)
    verify(store, [run.name], say=lines.append)
    assert "it was edited" in lines[0]


def test_an_interruption_keeps_what_has_been_verified(store, lines) -> None:
    def say(line: str) -> None:
        lines.append(line)
        signal.raise_signal(signal.SIGINT)

    result = verify(store, sample=4, say=say)
    assert result.interrupted
    assert len(result.verdicts) == 1
    assert {*verification.newest(store)} == {*result.verdicts}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_damaged_record_of_verifications_is_named_and_set_aside(store, lines) -> None:
    path = store.root / verification.NAME
    path.write_text('{"schema": 1, "verifications": []}')
    verify(store, sample=1, say=lines.append)
    assert "verification.json: damaged: its checksum is missing" in lines[0]
    assert len(verification.read(store)) == 1
    assert (store.root / ".verification.json.damaged").is_file()


def test_a_verification_of_other_metrics_does_not_count(store) -> None:
    verify(store, sample=4, say=lambda line: None)
    run = run_of(store, 0)
    edit_metric(run, "val_acc", 0.5)
    reseal(run)
    assert len(verification.read(store)) == 4
    assert len(verification.newest(store)) == 3


def test_command_line_filters_and_counts(store, capsys) -> None:
    assert main(["verify", str(store.root), "--where", "seed in [1, 3]"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "2 of 2 runs trained again: 2 equal to the last bit"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sample", "0"], "--sample 0: at least 1 run is trained again"),
        (["--sample", "x"], "invalid int value: 'x'"),
        (["--seed", "-1"], "--seed -1: a seed is a whole number of at least 0"),
        (["--store", "/nowhere"], "there is no store '/nowhere'"),
        (["--where", "norm == bnn"], "did you mean 'bn'?"),
    ],
)
def test_mistakes_are_one_line(store, words, message, capsys, monkeypatch) -> None:
    monkeypatch.setenv("NORMBENCH_STORE", str(store.root))
    assert main(["verify", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_store_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="is finished: nothing to train again"):
        verify(Store(tmp_path))
