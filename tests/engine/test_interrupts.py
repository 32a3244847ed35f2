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


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []

    def work():
        with delay_interrupts():
            press_ctrl_c()
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    with pytest.raises(KeyboardInterrupt):  # the handler is restored
        press_ctrl_c()


def test_error_in_the_block_propagates_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="no"), delay_interrupts():
        raise ValueError("no")
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with delay_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


class Finalized:
    """Python discards exceptions raised in its finalizer."""

    def __del__(self):
        press_ctrl_c()
        len("the handler runs here")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_lost_interrupt_is_raised_again():
    before = signal.getsignal(signal.SIGINT)
    with remember_interrupts():
        raise_remembered()
        Finalized()
        with pytest.raises(KeyboardInterrupt):
            raise_remembered()
    assert signal.getsignal(signal.SIGINT) is before
    raise_remembered()  # forgets earlier interrupts


def test_handler_that_does_not_raise_is_respected():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *signalled: seen.append(signalled))
    try:
        with remember_interrupts():
            press_ctrl_c()
            raise_remembered()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_run_stops_although_its_interrupt_was_lost(small, warm):
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


def test_other_threads_are_unaffected():
    seen = []

    def work():
        with delay_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


@pytest.fixture
def uninterrupted(small, warm, tmp_path):
    """The result, without an interruption, of the run that the tests below interrupt."""
    return train(small("norm=bn"), Store(tmp_path / "uninterrupted"), warm=warm)


@pytest.mark.parametrize("press_at", [2, 3])
def test_run_interrupted_between_steps_resumes_to_the_same_bits(
    small, warm, uninterrupted, monkeypatch, press_at
):
    config = small("norm=bn")
    calls, train_steps = [], TensorFlowLoop.train

    def pressed(self, first, rates):
        steps = train_steps(self, first, rates)
        if len(rates):
            calls.append(len(rates))
            if len(calls) == press_at:
                press_ctrl_c()  # the weights have changed, but the steps are not counted yet
                sum(range(1000))  # like the end of a compiled call, where Python would raise
        return steps

    with monkeypatch.context() as patch:
        patch.setattr(TensorFlowLoop, "train", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, warm=warm)
    assert len(calls) == press_at
    outcome = train(config, warm=warm)
    assert len(outcome.run.meta["sessions"]) == 2
    assert outcome.summary["weights_sha256"] == uninterrupted.summary["weights_sha256"]


@pytest.mark.parametrize("moment", ["validation", "row", "checkpoint"])
def test_run_interrupted_after_the_steps_of_an_epoch_keeps_them(
    small, warm, uninterrupted, monkeypatch, moment
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
            press_ctrl_c()
        return result

    pressed.done = False
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, warm=warm)
    run = Store(config.store).run(config)
    assert run.checkpoint_info()["step"] == 10  # the complete first epoch
    assert len(run.metrics()) == (0 if moment == "validation" else 1)
    resumed = train(config, warm=warm)
    assert resumed.summary["weights_sha256"] == uninterrupted.summary["weights_sha256"]
