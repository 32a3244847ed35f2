"""Extending a finished run: bit-identical to one long run, or a new run that says why."""

from __future__ import annotations

import keras
import pytest

from normbench.cli import main
from normbench.config import compose
from normbench.engine import longer
from normbench.engine.train import train
from normbench.store.store import Store
from tests.engine.test_train import Notes
from tests.engine.tinyloop import TINY, without_times

SHARED = [
    "dataset=digits",
    "dataset.train_size=160",
    "dataset.validation=100",
    *TINY,
    "norm=bn",
    "batch=16",
    "schedule=constant",
    f"backend={keras.backend.backend()}",
]


@pytest.fixture
def make(tmp_store):
    def config(*overrides, store=tmp_store):
        return compose([*SHARED, *overrides, f"store={store}"])

    return config


def train_then_extend(make, *overrides, warm=None, epochs=(2, 4)):
    """Train a run, then one of more epochs; return the first run, the result and the notes."""
    fewer, more = (make(*overrides, f"epochs={count}") for count in epochs)
    first = train(fewer, warm=warm).run
    observer = Notes()
    return first, train(more, observer=observer, warm=warm), observer.notes


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="bn"),
        pytest.param(
            ("norm=precise_bn", "dataset.crop_padding=1", "optimizer.momentum=0.8"),
            id="precise_bn",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_extended_run_equals_uninterrupted_training_bit_for_bit(make, tmp_path, overrides):
    first, result, notes = train_then_extend(make, *overrides)
    at_once = train(make(*overrides, "epochs=4", store=tmp_path / "at once"))
    run = result.run
    assert run.name == at_once.run.name != first.name
    assert notes == [
        f"continues from {first.name} after 2 epochs, bit-identical to training from the start"
    ]
    assert [session["from_epoch"] for session in run.meta["sessions"]] == [0, 2]
    assert run.meta["continues"] == {"run": first.name, "epochs": 2}
    assert without_times(run.metrics()) == without_times(at_once.run.metrics())
    assert without_times([run.summary]) == without_times([at_once.summary])
    assert run.summary["weights_sha256"] is not None
    assert run.metrics()[:2] == first.metrics()
    assert run.verify() == first.verify() == "finished"
    assert run.summary["wall_seconds"] > first.summary["wall_seconds"]
    assert "continues" not in at_once.run.meta


def test_longest_of_several_runs_is_continued(make, warm):
    train(make("epochs=1"), warm=warm)
    second, result, _ = train_then_extend(make, warm=warm, epochs=(2, 3))
    assert second.meta["continues"]["epochs"] == 1
    assert result.run.meta["continues"] == {"run": second.name, "epochs": 2}


def test_probes_measure_in_the_same_epochs_when_extended(make, warm, tmp_path):
    probes = ("probe=[train_gap]", "probe.train_gap.every=3")
    first, result, _ = train_then_extend(make, *probes, warm=warm)
    at_once = train(make(*probes, "epochs=4", store=tmp_path / "at once"), warm=warm)
    assert any(key.startswith("probe/") for key in first.metrics()[-1])
    assert without_times(result.run.metrics()) == without_times(at_once.run.metrics())


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("schedule=cosine",), "the learning rates of schedule=cosine depend on the total number"),
        (
            ("schedule.warmup=0.1",),
            "the warm-up of schedule=constant depends on the total number of epochs",
        ),
    ],
)
def test_schedule_that_depends_on_the_total_epochs_makes_a_new_run(make, warm, overrides, reason):
    first, result, notes = train_then_extend(make, *overrides, warm=warm, epochs=(1, 2))
    (note,) = notes
    has = f"trains from the start, although {first.name} has 1 of these 2 epochs"
    assert note.startswith(f"{has}: {reason}")
    assert "continues" not in result.run.meta
    assert [session["from_epoch"] for session in result.run.meta["sessions"]] == [0]


def test_different_conditions_make_a_new_run(make, warm):
    first = train(make("epochs=1"), warm=warm).run
    first.update_meta(processor="another")
    observer = Notes()
    result = train(make("epochs=2"), observer=observer, warm=warm)
    assert "it was trained under different conditions: processor another, now" in observer.notes[0]
    assert "continues" not in result.run.meta


def test_only_shorter_runs_of_the_same_config_are_continued(make, warm):
    train(make("epochs=1", "optimizer.lr=0.05"), warm=warm)
    train(make("epochs=1", "seed=1"), warm=warm)
    train(make("epochs=4"), warm=warm)
    observer = Notes()
    result = train(make("epochs=2"), observer=observer, warm=warm)
    assert observer.notes == []
    assert "continues" not in result.run.meta


def test_again_trains_from_the_first_step(make, warm):
    train(make("epochs=1"), warm=warm)
    train(make("epochs=2"), warm=warm)
    result = train(make("epochs=2"), again=True, warm=warm)
    assert "continues" not in result.run.meta
    assert [session["from_epoch"] for session in result.run.meta["sessions"]] == [0]


def test_interrupt_while_taking_over_epochs_loses_nothing(make, warm, tmp_path, monkeypatch):
    first = train(make("epochs=2"), warm=warm).run

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("normbench.store.run.Run.save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make("epochs=4"), warm=warm)
    assert Store(make().store).run(make("epochs=4")).status == "interrupted"
    result = train(make("epochs=4"), warm=warm)
    at_once = train(make("epochs=4", store=tmp_path / "at once"), warm=warm)
    assert result.run.meta["continues"] == {"run": first.name, "epochs": 2}
    assert without_times(result.run.metrics()) == without_times(at_once.run.metrics())
    assert result.summary["weights_sha256"] == at_once.summary["weights_sha256"]


def test_shorter_run_without_weights_makes_a_new_run(make, warm):
    first = train(make("epochs=1"), warm=warm).run
    (first.path / "checkpoint" / "last.npz").unlink()
    observer = Notes()
    assert "continues" not in train(make("epochs=2"), observer=observer, warm=warm).run.meta
    assert "it keeps no weights" in observer.notes[0]


def test_damaged_shorter_run_is_not_continued(make, warm):
    first = train(make("epochs=1"), warm=warm).run
    (first.path / "summary.json").write_text("{}")
    assert longer.shorter_run(make("epochs=2"), Store(make().store)) is None


def test_command_reports_the_continuation(make, capsys):
    words = [*SHARED, f"store={make().store}"]
    assert main(["run", *words, "epochs=1"]) == 0
    capsys.readouterr()
    assert main(["run", *words, "epochs=2"]) == 0
    captured = capsys.readouterr()
    assert "continues from" in captured.out + captured.err
