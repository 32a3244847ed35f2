"""``accumulate=auto``: a batch is split where memory is short, and the record says so."""

import json

import pytest
import tensorflow as tf

from normbench.config import Config, compose
from normbench.engine import backend
from normbench.engine.micro_batches import MicroBatches
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.engine.train import train
from normbench.errors import UserError, is_out_of_memory
from normbench.store.store import Store


class Notes(Observer):
    """Collects a run's notes, and presses Ctrl-C once the epoch `interrupts_at` is complete."""

    def __init__(self, interrupts_at=None):
        self.notes = []
        self.interrupts_at = interrupts_at

    def on_note(self, text):
        self.notes.append(text)

    def on_epoch(self, row):
        if row["epoch"] == self.interrupts_at:
            raise KeyboardInterrupt


def config_in(store, *overrides: str) -> Config:
    """Compose a config of a run that takes a second."""
    options = ["dataset.train_size=160", "dataset.validation=100", "epochs=2", "batch=16"]
    network = ["arch=mlp_sigmoid", "arch.layers=1", "arch.units=8", "norm=bn", f"store={store}"]
    return compose(["dataset=digits", *network, *options, *overrides])


@pytest.fixture
def small(tmp_store):
    return lambda *overrides: config_in(tmp_store, *overrides)


def limit_memory(monkeypatch, limit, from_epoch=0):
    """Let steps run out of memory where more than ``limit`` images pass the network at once."""
    loop = backend.loop_class("tensorflow")
    train_steps = loop.train
    memory = {"limit": limit, "from_epoch": from_epoch, "epoch": 0}

    def begin(self, epoch, begin_epoch=loop.begin_epoch):
        memory["epoch"] = epoch
        begin_epoch(self, epoch)

    def step(self, first, rates):
        is_short = self.settings.micro_batch > memory["limit"]
        if len(rates) and is_short and memory["epoch"] >= memory["from_epoch"]:
            tf.zeros([1 << 45])  # no machine has this much: raises TensorFlow's own error
        return train_steps(self, first, rates)

    monkeypatch.setattr(loop, "train", step)
    monkeypatch.setattr(loop, "begin_epoch", begin)
    return memory


@pytest.fixture
def short_of_memory(monkeypatch):
    """Memory for at most 8 images at once; a test may change the limit."""
    return limit_memory(monkeypatch, 8)


@pytest.fixture(scope="module")
def split_run(tmp_path_factory):
    """The result and notes of a run with memory for at most 4 images at once."""
    observer = Notes()
    with pytest.MonkeyPatch.context() as patch:
        limit_memory(patch, 4)
        config = config_in(tmp_path_factory.mktemp("split"), "accumulate=auto", "seed=3")
        return train(config, observer=observer), observer.notes


def test_run_is_split_as_far_as_needed_and_notes_it(split_run):
    outcome, notes = split_run
    assert outcome.summary["status"] == "finished"
    assert outcome.summary["micro_batches"] == 4
    assert outcome.run.meta["micro_batches"] == [{"epoch": 0, "count": 4}]
    assert [note.split(",")[0] for note in notes] == [
        "memory is short: from here on a batch of 16 as 2 micro-batches of 8",
        "memory is short: from here on a batch of 16 as 4 micro-batches of 4",
    ]
    assert "as 4 micro-batches of 4" in outcome.run.log_path.read_text()


def test_fixed_micro_batches_give_the_same_numbers_and_a_reusable_loop(small, split_run):
    warm = WarmState()
    train(small("accumulate=4", "seed=1"), warm=warm)
    assert warm.has_loop_for(small("accumulate=4", "seed=3"), 4)
    assert not warm.has_loop_for(small("accumulate=2"), 2)
    split, _ = split_run
    fixed = train(small("accumulate=4", "seed=3"), warm=warm)
    assert fixed.run.name != split.run.name
    assert fixed.summary["weights_sha256"] == split.summary["weights_sha256"]


def test_run_that_later_lacks_memory_resumes_from_its_last_epoch(small, short_of_memory):
    short_of_memory["from_epoch"] = 1
    outcome = train(small("accumulate=auto"))
    assert outcome.run.meta["micro_batches"] == [
        {"epoch": 0, "count": 1},
        {"epoch": 1, "count": 2},
    ]
    assert [row["epoch"] for row in outcome.run.metrics()] == [1, 2]


def test_resumed_run_keeps_its_micro_batches(small, split_run, short_of_memory):
    short_of_memory["limit"] = 4
    config = small("accumulate=auto", "seed=3")
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=Notes(interrupts_at=1))
    short_of_memory["limit"] = 1000  # memory is available again, but the numbers must not change
    outcome = train(config)
    assert outcome.summary["micro_batches"] == 4
    assert outcome.summary["weights_sha256"] == split_run[0].summary["weights_sha256"]


def test_split_run_leaves_no_loop_for_the_next_run(small, short_of_memory):
    warm = WarmState()
    assert train(small("accumulate=auto"), warm=warm).summary["micro_batches"] == 2
    assert not warm.has_loop_for(small("accumulate=auto", "seed=1"))
    short_of_memory["limit"] = 1000
    assert train(small("accumulate=auto", "seed=1"), warm=warm).summary["micro_batches"] == 1


@pytest.mark.parametrize("overrides", [(), ("accumulate=2",)])
def test_batches_are_not_split_without_accumulate_auto(small, short_of_memory, overrides):
    short_of_memory["limit"] = 4
    config = small(*overrides)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(config)
    run = Store(config.store).run(config)
    assert run.status == "failed"
    assert run.meta["micro_batches"] == [{"epoch": 0, "count": 2 if overrides else 1}]


def test_sweep_may_forbid_splitting(small, short_of_memory):
    config = small("accumulate=auto")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(config, may_split=False)
    assert train(config).summary["micro_batches"] == 2


def test_splitting_stops_at_micro_batches_of_one_image(small, short_of_memory):
    short_of_memory["limit"] = 0
    config = small("accumulate=auto", "norm=ln", "batch=4")  # BN does not accept a single image
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(config)
    meta = json.loads((Store(config.store).run(config).path / "meta.json").read_text())
    assert meta["micro_batches"] == [{"epoch": 0, "count": 4}]


def test_other_errors_do_not_split(small):
    micro_batches = MicroBatches(small("accumulate=auto"), None)
    assert not micro_batches.helps_against(RuntimeError("something else"))
    assert micro_batches.helps_against(MemoryError())
    micro_batches.split(0)
    assert micro_batches.count == 2


def test_next_count_divides_the_batch(small):
    micro_batches = MicroBatches(small("batch=45", "accumulate=auto"), None)
    counts = []
    while micro_batches.helps_against(MemoryError()):
        micro_batches.split(0)
        counts.append(micro_batches.count)
    assert counts == [3, 9, 45]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "accumulate=3 does not divide batch=16 (allowed: 1, 2, 4, 8, 16, auto)"),
        ("0", "accumulate must be at least 1, got 0"),
        ("often", "accumulate must be a whole number or 'auto', got 'often'"),
        ("1.5", "accumulate must be a whole number"),
    ],
)
def test_invalid_values_are_refused(small, value, message):
    with pytest.raises(UserError) as refusal:
        small(f"accumulate={value}")
    assert message in str(refusal.value)


def test_accumulate_1_does_not_change_the_signature(small):
    assert small().signature == small("accumulate=1").signature
    assert len({small(f"accumulate={n}").signature for n in (1, 2, 4, "auto")}) == 4


def test_memory_errors_are_distinguished_from_others():
    with pytest.raises(tf.errors.ResourceExhaustedError) as spent:
        tf.zeros([1 << 45])
    later = RuntimeError("while training")
    later.__cause__ = spent.value
    assert is_out_of_memory(later)
    assert is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"))
    assert not is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: too many files"))
