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


class Noting(Observer):
    def __init__(self):
        self.notes = []
        self.interrupts_at = None

    def on_note(self, text):
        self.notes.append(text)

    def on_epoch(self, row):
        if row["epoch"] == self.interrupts_at:
            raise KeyboardInterrupt


@pytest.fixture
def small(tmp_store):
    """Compose a config of a run that takes a second; overrides may be added."""

    def make(*overrides: str) -> Config:
        options = ["dataset.train_size=160", "dataset.validation=100", "epochs=2", "batch=16"]
        network = ["arch=mlp_sigmoid", "norm=bn", f"store={tmp_store}"]
        return compose(["dataset=digits", *network, *options, *overrides])

    return make


@pytest.fixture
def short_of_memory(monkeypatch):
    """Steps find no memory where more than ``limit`` images go through the network at once."""
    loop = backend.loop_class("tensorflow")
    takes = loop.train
    room = {"limit": 4, "from_epoch": 0, "epoch": 0}

    def begin(self, epoch, begins=loop.begin_epoch):
        room["epoch"] = epoch
        begins(self, epoch)

    def step(self, first, rates):
        full = self.settings.micro_batch > room["limit"] and room["epoch"] >= room["from_epoch"]
        if len(rates) and full:
            tf.zeros([1 << 45])  # which no machine has: TensorFlow's own error
        return takes(self, first, rates)

    monkeypatch.setattr(loop, "train", step)
    monkeypatch.setattr(loop, "begin_epoch", begin)
    return room


def test_a_run_is_split_as_far_as_needed_and_says_so(small, short_of_memory):
    seen = Noting()
    outcome = train(small("accumulate=auto"), observer=seen)
    assert outcome.summary["status"] == "finished"
    assert outcome.summary["micro_batches"] == 4
    assert outcome.run.meta["micro_batches"] == [{"epoch": 0, "count": 4}]
    assert [note.split(",")[0] for note in seen.notes] == [
        "memory is short: from here on a batch of 16 as 2 micro-batches of 8",
        "memory is short: from here on a batch of 16 as 4 micro-batches of 4",
    ]
    assert "as 4 micro-batches of 4" in outcome.run.log_path.read_text()


def test_the_numbers_are_those_of_a_batch_split_from_the_start(small, short_of_memory, tmp_path):
    found = train(small("accumulate=auto"))
    asked = train(small("accumulate=4"))
    assert found.run.name != asked.run.name
    assert found.summary["weights_sha256"] == asked.summary["weights_sha256"]


def test_where_memory_gets_short_later_the_run_goes_on_from_its_last_epoch(small, short_of_memory):
    short_of_memory["from_epoch"] = 1
    outcome = train(small("accumulate=auto"))
    assert outcome.run.meta["micro_batches"] == [
        {"epoch": 0, "count": 1},
        {"epoch": 1, "count": 4},
    ]
    assert [row["epoch"] for row in outcome.run.metrics()] == [1, 2]


def test_a_run_that_goes_on_keeps_its_parts(small, short_of_memory):
    whole = train(small("accumulate=auto", "seed=3"), Store(small().store + "-whole"))
    seen = Noting()
    seen.interrupts_at = 1
    config = small("accumulate=auto", "seed=3")
    with pytest.raises(KeyboardInterrupt):
        train(config, observer=seen)
    short_of_memory["limit"] = 1000  # memory is there again: the numbers must not change
    outcome = train(config)
    assert outcome.summary["micro_batches"] == 4
    assert outcome.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_what_was_compiled_serves_the_next_run_of_as_many_parts(small):
    warm = WarmState()
    train(small("accumulate=4"), warm=warm)
    assert warm.has_loop_for(small("accumulate=4", "seed=1"), 4)
    assert not warm.has_loop_for(small("accumulate=2"), 2)
    again = train(small("accumulate=4", "seed=1"), warm=warm)
    alone = train(small("accumulate=4", "seed=1"), Store(small().store + "-alone"))
    assert again.summary["weights_sha256"] == alone.summary["weights_sha256"]


def test_a_run_that_was_split_leaves_nothing_to_the_next(small, short_of_memory):
    warm = WarmState()
    assert train(small("accumulate=auto"), warm=warm).summary["micro_batches"] == 4
    assert not warm.has_loop_for(small("accumulate=auto", "seed=1"))
    short_of_memory["limit"] = 1000
    assert train(small("accumulate=auto", "seed=1"), warm=warm).summary["micro_batches"] == 1


@pytest.mark.parametrize("overrides", [(), ("accumulate=2",)])
def test_without_being_asked_nothing_is_split(small, short_of_memory, overrides):
    config = small(*overrides)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(config)
    run = Store(config.store).run(config)
    assert run.status == "failed"
    assert run.meta["micro_batches"] == [{"epoch": 0, "count": 2 if overrides else 1}]


def test_a_sweep_may_forbid_it_for_a_first_try(small, short_of_memory):
    config = small("accumulate=auto")
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(config, may_split=False)
    assert train(config).summary["micro_batches"] == 4


def test_a_part_of_one_image_is_the_end(small, short_of_memory):
    short_of_memory["limit"] = 0
    config = small("accumulate=auto", "norm=ln")  # BN takes no part of one image
    with pytest.raises(tf.errors.ResourceExhaustedError):
        train(config)
    meta = json.loads((Store(config.store).run(config).path / "meta.json").read_text())
    assert meta["micro_batches"] == [{"epoch": 0, "count": 16}]


def test_other_errors_split_nothing(small):
    splitting = MicroBatches(small("accumulate=auto"), None)
    assert not splitting.helps_against(RuntimeError("something else"))
    assert splitting.helps_against(MemoryError())
    splitting.split(0)
    assert splitting.count == 2


def test_the_next_count_divides_the_batch(small):
    splitting = MicroBatches(small("batch=45", "accumulate=auto"), None)
    counts = []
    while splitting.helps_against(MemoryError()):
        splitting.split(0)
        counts.append(splitting.count)
    assert counts == [3, 9, 45]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("3", "accumulate=3 does not divide batch=16 (allowed: 1, 2, 4, 8, 16, auto)"),
        ("0", "accumulate must be at least 1, got 0"),
        ("often", "accumulate must be a whole number or 'auto', got 'often'"),
        ("1.5", "accumulate must be a whole number"),
    ],
)
def test_other_values_are_refused(small, value, says):
    with pytest.raises(UserError) as refusal:
        small(f"accumulate={value}")
    assert says in str(refusal.value)


def test_the_signature_of_a_whole_batch_is_what_it_was(small):
    assert small().signature == small("accumulate=1").signature
    assert len({small(f"accumulate={n}").signature for n in (1, 2, 4, "auto")}) == 4


def test_memory_errors_are_told_from_others():
    with pytest.raises(tf.errors.ResourceExhaustedError) as spent:
        tf.zeros([1 << 45])
    later = RuntimeError("while training")
    later.__cause__ = spent.value
    assert is_out_of_memory(later)
    assert is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"))
    assert not is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: too many files"))
