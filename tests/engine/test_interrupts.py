"""Ctrl-C in the middle of compiled steps."""

import os
import signal
import threading

import pytest

from normbench.engine.interrupts import delay_interrupts, raise_remembered, remember_interrupts
from normbench.engine.loop_tensorflow import TensorFlowLoop
from normbench.engine.observer import Observer
from normbench.engine.train import train
from normbench.store.run import Run
from normbench.store.store import Store


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []

    def work():
        with delay_interrupts():
            press()
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    with pytest.raises(KeyboardInterrupt):  # the handler is back
        press()


def test_an_error_in_the_block_comes_first_and_the_handler_is_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="no"), delay_interrupts():
        raise ValueError("no")
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with delay_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


class Finalized:
    """Python drops what is raised while this runs."""

    def __del__(self):
        press()
        len("the handler runs here")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_got_lost_is_raised_again():
    before = signal.getsignal(signal.SIGINT)
    with remember_interrupts():
        raise_remembered()
        Finalized()
        with pytest.raises(KeyboardInterrupt):
            raise_remembered()
    assert signal.getsignal(signal.SIGINT) is before
    raise_remembered()  # what was before is over


def test_a_handler_that_ends_nothing_is_left_at_that():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *signalled: seen.append(signalled))
    try:
        with remember_interrupts():
            press()
            raise_remembered()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_ends_though_its_interrupt_got_lost(small, warm):
    class Unlucky(Observer):
        def on_start(self, info):
            Finalized()

    config = small("norm=bn")
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Unlucky(), warm=warm)
    run = Store(config.store).run(config)
    assert run.status == "interrupted"
    assert run.checkpoint_info()["step"] == 1
    assert train(config, warm=warm).summary["status"] == "finished"


def test_another_thread_is_let_be():
    seen = []

    def work():
        with delay_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.fixture
def whole(small, warm, tmp_path):
    """The result of the run that the tests below interrupt, trained without an interruption."""
    return train(small("norm=bn"), Store(tmp_path / "whole"), warm=warm)


@pytest.mark.parametrize("press_at", [2, 3])
def test_a_run_interrupted_inside_its_steps_goes_on_to_the_same_bits(
    small, warm, whole, monkeypatch, press_at
):
    config = small("norm=bn")
    calls, train_steps = [], TensorFlowLoop.train

    def pressed(self, first, rates):
        steps = train_steps(self, first, rates)
        if len(rates):
            calls.append(len(rates))
            if len(calls) == press_at:
                press()  # the weights have changed, and nobody has counted the steps yet
                sum(range(1000))  # as the rest of a compiled call: where Python would raise
        return steps

    with monkeypatch.context() as patch:
        patch.setattr(TensorFlowLoop, "train", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, warm=warm)
    assert len(calls) == press_at
    outcome = train(config, warm=warm)
    assert len(outcome.run.meta["sessions"]) == 2
    assert outcome.summary["weights_sha256"] == whole.summary["weights_sha256"]


@pytest.mark.parametrize("moment", ["validation", "row", "checkpoint"])
def test_a_run_interrupted_after_the_steps_of_an_epoch_keeps_them(
    small, warm, whole, monkeypatch, moment
):
    config = small("norm=bn")
    owner, name = {
        "validation": (TensorFlowLoop, "evaluate"),
        "row": (Run, "append_metrics"),
        "checkpoint": (Run, "save_checkpoint"),
    }[moment]
    call = getattr(owner, name)

    def pressed(self, *arguments, **options):
        result = call(self, *arguments, **options)
        if not pressed.done:
            pressed.done = True
            press()
        return result

    pressed.done = False
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, warm=warm)
    run = Store(config.store).run(config)
    assert run.checkpoint_info()["step"] == 10  # the whole first epoch
    assert len(run.metrics()) == (0 if moment == "validation" else 1)
    resumed = train(config, warm=warm)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
