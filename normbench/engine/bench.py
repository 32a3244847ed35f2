"""What a run is trained with: data set, network, compiled loop, learning rates and probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from normbench.components import configured, is_own, make_source
from normbench.config import Config
from normbench.engine import backend
from normbench.engine.reuse import Kept
from normbench.engine.splitting import Splitting
from normbench.errors import UserError
from normbench.loggers.logger import make_loggers
from normbench.provenance import data_hash


@dataclass(frozen=True)
class Prepared:
    """What a run is trained with, all of it checked before anything is written.

    Attributes:
        dataset: Its three splits.
        model: The loop's.
        loop: In the run's initial state.
        rates: Learning rate of each step of the run, float32.
        steps_per_epoch: Steps of an epoch.
        probes: Those that the config names.
    """

    dataset: Any
    model: Any
    loop: Any
    rates: np.ndarray
    steps_per_epoch: int
    probes: list[Any]


class Bench:
    """What a run is trained with, made anew where its batch has to be split further.

    Args:
        config: Of the run.
        dataset: Of the run.
        kept: Of the run before in this process.
        splitting: Of the run's batches.

    Raises:
        UserError: As :func:`prepare`.
    """

    def __init__(self, config: Config, dataset: Any, kept: Kept, splitting: Splitting) -> None:
        self._make = lambda: prepare(config, dataset, kept, splitting.count)
        self._auto = config.accumulate == "auto"
        self._kept = kept
        self.splitting = splitting
        self.prepared = self._make()

    def again(self) -> None:
        """Let go of the network and what was compiled, and make them with the present count."""
        del self.prepared  # first: two may not fit
        self._kept.forget_loop()
        self.prepared = self._make()

    def close(self) -> None:
        """Leave nothing to the next run that was made for a batch split by ``auto``."""
        if self._auto and self.splitting.count > 1:
            self._kept.forget_loop()


def load_dataset(config: Config) -> Any:
    """Load the data set of a run, split as its config says."""
    from normbench.data.split import load

    return load(
        make_source(config.dataset),
        config.dataset["validation"],
        config.dataset["split_seed"],
        config.dataset["train_size"],
        fingerprint=data_hash if is_own(config.dataset["_target_"]) else None,
    )


def refuse_batch(config: Config, dataset: Any) -> None:
    """Refuse a batch that the training set has not images enough for.

    Raises:
        UserError: It is larger.
    """
    count = len(dataset.train.labels)
    if config.batch > count:
        raise UserError(
            f"batch={config.batch} is larger than the training set of {dataset.name} "
            f"({count} images after validation is held out)"
        )


def check(config: Config, kept: Kept) -> Any:
    """Refuse what can be refused of a config without its network.

    Returns:
        The data set; with it, :func:`normbench.engine.model.build_model` can be tried.

    Raises:
        UserError: The config cannot be trained.
        NormbenchError: The data set is damaged.
    """
    dataset = kept.dataset(config, load_dataset)
    refuse_batch(config, dataset)
    make_loggers(config.logger)
    _optimizer(config)
    _rates(config, len(dataset.train.labels) // config.batch)
    return dataset


def _optimizer(config: Config) -> Any:
    keys = ("lr", "base_batch", "scaling")
    make, options = configured("optimizer", config.optimizer, keys=keys)
    if not config.optimizer["lr"] > 0:
        raise UserError(f"optimizer.lr must be above 0, got {config.optimizer['lr']:g}")
    return make(**options)


def _rates(config: Config, steps: int) -> np.ndarray:
    """The learning rate of each step of the run, float32, with ``steps`` steps an epoch."""
    from normbench.engine import schedule

    peak = schedule.peak(
        config.optimizer["lr"],
        config.batch,
        config.optimizer["base_batch"],
        config.optimizer["scaling"],
    )
    course, options = configured("schedule", config.schedule, passed=("steps",))
    factors = course(steps * config.epochs, **options)
    return (np.float64(peak) * factors).astype(np.float32)


def prepare(config: Config, dataset: Any, kept: Kept, micro_batches: int) -> Prepared:
    """Build all that a run is trained with; its backend must have been started.

    Args:
        config: Of the run.
        dataset: Of the run.
        kept: Of the run before in this process.
        micro_batches: Equal parts that a batch goes through the network in.

    Raises:
        UserError: The config cannot be trained, or a probe of it cannot be measured.
    """
    from normbench.engine.images import Images
    from normbench.engine.loop import Plan
    from normbench.engine.model import build_model, initialize_from
    from normbench.probes.probe import make_probes

    steps = len(dataset.train.labels) // config.batch
    optimizer, rates = _optimizer(config), _rates(config, steps)
    model = build_model(config, dataset.shape, dataset.classes)
    plan = Plan(
        batch=config.batch,
        eval_batch=config.eval_batch,
        seed=config.seed,
        smoothing=config.label_smoothing,
        optimizer=optimizer,
        images=Images(
            mean=np.asarray(dataset.mean, np.float32),
            std=np.asarray(dataset.std, np.float32),
            crop_padding=config.dataset["crop_padding"],
            flip=config.dataset["flip"],
        ),
        scaled_loss=config.precision == "mixed_float16",
        auxiliary_weight=config.arch.get("auxiliary_weight", 0.0),
        micro_batches=micro_batches,
    )
    initialize_from(model, dataset.train.images, plan.images)
    make_loop: Any = backend.loop_class(config.backend)
    loop = kept.loop(config, make_loop(model, dataset, plan))
    probes = make_probes(config.probe)
    for probe in probes:
        probe.check(model)
    return Prepared(dataset, loop.model, loop, rates, steps, probes)
