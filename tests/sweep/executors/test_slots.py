"""Slots: GPUs visible to CUDA, shares of the cores, and the choice of an executor."""

from __future__ import annotations

import pytest

from normbench.errors import UserError
from normbench.sweep.executors.base import choose, make
from normbench.sweep.executors.inline import Inline
from normbench.sweep.executors.local import Local
from normbench.sweep.executors.slots import Gpu, fitting, on_cores, on_gpus, visible_gpus

GIB = 1 << 30


def driver():
    return [{"name": "A", "total": 80 * GIB, "free": 70 * GIB},
            {"name": "B", "total": 80 * GIB, "free": 40 * GIB},
            {"name": "C", "total": None, "free": None}]  # fmt: skip


@pytest.mark.parametrize(
    ("visible", "ids"),
    [(None, ["0", "1", "2"]), ("", []), ("-1", []), ("2,0", ["2", "0"]), ("1,7,0", ["1"]),
     ("GPU-8f3a", ["GPU-8f3a"])],
)  # fmt: skip
def test_visible_gpus_match_cuda_visible_devices(visible, ids):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [gpu.id for gpu in visible_gpus(driver, environment)] == ids


def test_driver_is_not_queried_if_gpus_are_hidden():
    assert visible_gpus(lambda: 1 / 0, {"CUDA_VISIBLE_DEVICES": "-1"}) == []  # type: ignore


def test_slots_are_distributed_round_robin_over_gpus():
    gpus = [Gpu("0", None), Gpu("3", None)]
    slots = on_gpus(gpus, [2, 1], most=9)
    assert [slot.name for slot in slots] == ["gpu 0", "gpu 3", "gpu 0.1"]
    assert [slot.device for slot in slots] == ["gpu 0", "gpu 3", "gpu 0"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "3", "0"]
    assert all(slot.environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true" for slot in slots)
    assert len(on_gpus(gpus, [2, 1], most=2)) == 2


def test_slots_on_gpus_share_the_cores():
    gpus = [Gpu("0", None), Gpu("1", None)]
    slots = on_gpus(gpus, [2, 2], 9, cores=range(8))
    assert [slot.cores for slot in slots] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [slot.cores for slot in on_gpus(gpus, [1, 1], 1, cores=range(8))] == [tuple(range(8))]
    assert [slot.cores for slot in on_gpus(gpus, [2, 2], 9, cores=[5])] == 4 * [(5,)]


@pytest.mark.parametrize(
    ("free", "need", "cores", "fits"),
    [(70, 10, 16, 6), (70, 1, 16, 8), (70, 1, 3, 3), (8, 10, 16, 1), (None, 1, 16, 1)],
)
def test_number_of_runs_that_fit_on_a_gpu(free, need, cores, fits):
    gpu = Gpu("0", None if free is None else free * GIB)
    assert fitting(gpu, need * GIB, cores) == fits


@pytest.mark.parametrize(
    ("cores", "workers", "shares"),
    [(4, 2, [(0, 1), (2, 3)]), (3, 2, [(0,), (1, 2)]), (2, 1, [(0, 1)]), (1, 2, [(0,), (0,)])],
)
def test_cores_are_divided_among_workers(cores, workers, shares):
    assert [slot.cores for slot in on_cores(range(cores), workers)] == shares


def test_executor_is_removed_from_the_overrides():
    options, overrides = choose(["norm=bn,gn", "executor.workers=3", "executor=local", "seed=0,1"])
    assert overrides == ["norm=bn,gn", "seed=0,1"]
    assert (options["name"], options["workers"], options["retries"]) == ("local", 3, 1)
    assert isinstance(make(options), Local)
    options, overrides = choose(["norm=bn"])
    assert options["name"] == "local"
    assert isinstance(make(choose(["executor=inline"])[0]), Inline)


def test_user_folder_can_add_an_executor(tmp_path):
    (tmp_path / "executor").mkdir()
    (tmp_path / "executor" / "mine.yaml").write_text(
        "name: mine\n_target_: normbench.sweep.executors.local.Local\nworkers: 1\ngpus: 0\n"
        "jobs_per_gpu: null\nretries: 5\n"
    )
    options, _ = choose(["executor=mine"], tmp_path)
    assert options["retries"] == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("executor=inlien", "unknown executor 'inlien': did you mean 'inline'"),
        ("executor.wokers=2", "unknown option of executor=local 'wokers': did you mean 'workers'"),
        ("executor.workers=1,2", "one executor"),
        ("+executor.workers=1", "write executor.workers=VALUE"),
    ],
)
def test_mistakes_are_refused(override, message):
    with pytest.raises(UserError, match=message.replace("+", "\\+")):
        choose([override])
