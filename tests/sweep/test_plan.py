"""The plan: states from the store, estimates from earlier runs, invalid cells."""

from __future__ import annotations

import socket
import time

import pytest

from normbench.config import SCHEMA, compose
from normbench.store.store import Store
from normbench.sweep.plan import other_versions, plan
from normbench.sweep.preflight import problems


def write_run(store, config, status, epochs=0, seconds=2.0, host=None, **meta):
    """Write a run to the store that ended with this status."""
    run = store.run(config)
    with run.lock(["test"]):
        run.create(
            {**config.to_dict(), "signature": config.signature, "schema": SCHEMA},
            {"status": status, "host": host or socket.gethostname(), "error": None, **meta},
        )
        for epoch in range(1, epochs + 1):
            run.append_metrics({"epoch": epoch, "train_seconds": seconds, "eval_seconds": 0.5})
        if status == "finished":
            wall = epochs * (seconds + 0.5) + 7.0
            run.write_summary({"status": "finished", "epochs": epochs, "wall_seconds": wall})
    return run


def states(planned):
    return [(cell.state, cell.todo) for cell in planned.cells]


def test_states_come_from_the_store(grid, tmp_store):
    configs = grid("seed=range(0,5)")
    store = Store(tmp_store)
    write_run(store, configs[0], "finished", 3)
    write_run(store, configs[1], "running", 1)  # its process no longer exists
    write_run(store, configs[2], "failed", 2, error={"type": "OSError", "message": "no"})
    with store.run(configs[3]).lock(["somebody"]):
        running = store.run(configs[3])
        running.create({**configs[3].to_dict(), "signature": configs[3].signature},
                             {"status": "running"})  # fmt: skip
        planned = plan(configs, store)
    assert states(planned) == [
        ("finished", False),
        ("interrupted", True),
        ("failed", False),
        ("running", True),
        ("missing", True),
    ]
    assert [cell.epochs for cell in planned.cells] == [3, 1, 2, 0, 0]
    assert planned.cells[2].reason == "OSError: no"
    assert "trained by process" in planned.cells[3].reason
    assert plan(configs, store, retry_failed=True).cells[2].todo
    assert planned.counts == {
        "finished": 1, "running": 1, "interrupted": 1, "failed": 1, "missing": 1
    }  # fmt: skip


def test_damaged_folder_has_the_state_unreadable(grid, tmp_store):
    (config,) = grid()
    store = Store(tmp_store)
    (write_run(store, config, "running", 1).path / "meta.json").write_text("{")
    (cell,) = plan([config], store).cells
    assert (cell.state, cell.todo) == ("unreadable", False)
    assert "meta.json" in cell.reason
    assert plan([config], store, retry_failed=True).cells[0].todo


def test_time_is_estimated_from_similar_runs_on_this_machine(grid, tmp_store):
    store = Store(tmp_store)
    for config in grid("seed=1,2,3", "epochs=10"):
        write_run(store, config, "finished", 10, seconds=config.seed)
    write_run(store, grid("seed=4", "epochs=10")[0], "finished", 10, 999.0, host="elsewhere")
    write_run(store, grid("seed=5", "arch.width=8", "epochs=10")[0], "finished", 10, 500.0)
    cells = plan(grid("seed=0", "epochs=4") + grid("batch=8", "epochs=4"), store).cells
    assert [cell.seconds for cell in cells] == [7.0 + 4 * 2.5] * 2  # the median run
    assert plan(grid("norm=none"), store).cells[0].seconds is None
    half = grid("seed=0", "epochs=4")[0]
    write_run(store, half, "running", 3)
    assert plan([half], store).cells[0].seconds == 7.0 + 2.5


def test_total_time_is_at_least_that_of_the_longest_cell(grid, tmp_store):
    store = Store(tmp_store)
    for config in grid("seed=9", "epochs=10"):
        write_run(store, config, "finished", 10, seconds=2.0)
    planned = plan(grid("seed=range(0,4)") + grid("norm=none"), store)
    assert planned.seconds(2) == (2 * (7.0 + 3 * 2.5), 1)
    assert planned.seconds(9) == (7.0 + 3 * 2.5, 1)


class RecordingCheck:
    """A check that refuses groups=3 and records the configs that it receives."""

    def __init__(self):
        self.configs = []

    def __call__(self, configs):
        self.configs += configs
        return ["groups=3: no" if c.norm.get("groups") == 3 else "" for c in configs]


def test_combination_is_checked_once_and_not_if_the_store_has_a_run_of_it(grid, tmp_store):
    store, check = Store(tmp_store), RecordingCheck()
    configs = grid("seed=range(0,9)", "norm=gn", "norm.groups=1,2,3")
    proof = grid("seed=99", "norm=gn", "norm.groups=1")[0]
    write_run(store, proof, "failed")
    planned = plan(configs, store)
    errors = problems(planned.todo, store, check)
    assert [config.norm["groups"] for config in check.configs] == [2, 3]
    assert len(errors) == 9
    marked = planned.without(errors)
    assert marked.counts == {"invalid": 9, "missing": 18}
    assert all("groups=3" in cell.reason for cell in marked.of_state("invalid"))
    assert not any(cell.todo for cell in marked.of_state("invalid"))


def test_data_set_limits_are_checked_without_a_framework(grid, tmp_store, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    check, store = RecordingCheck(), Store(tmp_store)
    configs = [*grid("batch=161"), compose(["norm=bn", f"store={tmp_store}"])]
    errors = problems(plan(configs, store).todo, store, check)
    assert "batch=161 is larger than the training set of digits (160 images" in errors[
        configs[0].run_name
    ]  # fmt: skip
    assert "normbench data prepare cifar10" in errors[configs[1].run_name]
    assert check.configs == []


def test_cells_trained_by_other_versions_or_commits_are_flagged(grid, tmp_store):
    store = Store(tmp_store)
    for seed, keras, commit in ((0, "3.15.1", "a" * 40), (1, "3.15.1", "b" * 40), (2, "3.0", None)):
        write_run(
            store, grid(f"seed={seed}")[0], "finished", 1,
            versions={"keras": keras}, git=commit and {"commit": commit, "dirty": False},
        )  # fmt: skip
    now = {"git": {"commit": "a" * 40, "dirty": False}, "versions": {"keras": "3.15.1"}}
    lines = other_versions(plan(grid("seed=range(0,4)"), store).cells, store, now)
    assert lines == [
        f"1 of 3 finished runs trained by commit {'b' * 10}, but this is commit {'a' * 10}",
        f"1 of 3 finished runs trained by an installed normbench, but this is commit {'a' * 10}",
        "1 of 3 finished runs trained with keras 3.0, but this is 3.15.1",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["empty store", "full store"])
def test_two_thousand_cells_are_planned_in_seconds(grid, tmp_store, full):
    store = Store(tmp_store)
    began = time.process_time()
    configs = grid("norm=bn,gn", "norm.epsilon=0.001", "batch=8,16,32,64", "seed=range(0,250)")
    assert len(configs) == 2000
    if full:
        for config in configs[::100]:
            write_run(store, config, "finished", 2)
    check = RecordingCheck()
    planned = plan(configs, store)
    problems(planned.todo, store, check)
    assert len(check.configs) == (0 if full else 8)
    assert len(planned.todo) == (1980 if full else 2000)
    assert time.process_time() - began < 20  # 6 s on an idle machine
