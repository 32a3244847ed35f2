"""A reused loop gives the numbers of a fresh one."""

import pytest

from normbench.engine.reuse import WarmState, program
from normbench.engine.train import train
from normbench.store.store import Store
from tests.engine.tinyloop import without_times
from tests.marks import slow_except


@pytest.mark.parametrize("norm", slow_except(["precise_bn"], ["bn_ws", "gn", "precise_bn"]))
def test_reused_loop_trains_to_the_same_bits(small, tmp_path, norm):
    warm = WarmState()
    configs = [
        small(f"norm={norm}", "seed=0"),
        small(f"norm={norm}", "seed=7", "optimizer.lr=0.03", "epochs=3", "schedule=constant"),
        small(f"norm={norm}", "seed=0", "optimizer.lr=0.03"),
    ]
    assert len({program(config) for config in configs}) == 1
    first, *others = configs
    train(first, warm=warm)
    loop = warm._loop[1]
    for config in others:
        reused = train(config, warm=warm)
        assert warm._loop[1] is loop
        alone = train(config, Store(tmp_path / "alone"))
        assert reused.summary["weights_sha256"] == alone.summary["weights_sha256"]
        assert without_times(reused.run.metrics()) == without_times(alone.run.metrics())
        assert without_times([reused.summary]) == without_times([alone.summary])


def test_reused_loop_resumes_an_interrupted_run(small, tmp_path):
    from tests.engine.test_train import Interrupting

    config, other = small("norm=bn"), small("norm=bn", "seed=5")
    whole = train(config, Store(tmp_path / "whole"))
    warm = WarmState()
    train(other, warm=warm)
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Interrupting(1), warm=warm)
    train(small("norm=bn", "seed=6"), warm=warm)
    outcome = train(config, warm=warm)
    assert outcome.run.meta["sessions"][-1]["from_epoch"] == 1
    assert outcome.summary["weights_sha256"] == whole.summary["weights_sha256"]


@pytest.mark.parametrize(
    "override",
    ["batch=8", "norm.epsilon=0.01", "arch.embedding=8", "optimizer.momentum=0.8",
     "dataset.split_seed=1", "label_smoothing=0.1", "eval_batch=100"],
)  # fmt: skip
def test_compiled_in_options_make_another_program(small, override):
    assert program(small("norm=bn")) != program(small("norm=bn", override))


@pytest.mark.parametrize(
    "override",
    ["seed=3", "epochs=9", "optimizer.lr=1.0", "optimizer.scaling=none", "schedule=step",
     "store=elsewhere", "max_loss=10.0"],
)  # fmt: skip
def test_options_passed_per_run_keep_the_same_program(small, override):
    assert program(small("norm=bn")) == program(small("norm=bn", override))


def test_another_program_gets_a_new_loop(small):
    warm = WarmState()
    network = ("arch=mlp_sigmoid", "arch.layers=1", "norm=bn", "epochs=1")
    train(small(*network), warm=warm)
    first = warm._loop[1]
    train(small(*network, "batch=8"), warm=warm)
    assert warm._loop[1] is not first
