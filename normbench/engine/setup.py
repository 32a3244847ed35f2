"""What a run is trained with: data set, network, compiled loop, learning rates and probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normbench.components import configured, is_own, make_source
from normbench.config import Config
from normbench.engine import backend
from normbench.engine.micro_batches import MicroBatches
from normbench.engine.observer import make_loggers
from normbench.engine.reuse import WarmState
from normbench.errors import NormbenchError, UserError, is_out_of_memory, why
from normbench.store.provenance import data_hash

if TYPE_CHECKING:
    import keras

    from normbench.engine.augment import Images

SEEN = 5000
"""Training images that a data-dependent initialization is shown."""
MOST_STEPS = 100_000_000
"""Steps of a run; the learning rate of each is known before the first (0.4 GB)."""


@dataclass(frozen=True)
class TrainingSetup:
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
        warm: Of the run before in this process.
        splitting: Of the run's batches.

    Raises:
        UserError: As :func:`prepare`.
    """

    def __init__(
        self, config: Config, dataset: Any, warm: WarmState, splitting: MicroBatches
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._warm = warm
        self.splitting = splitting
        self.prepared = self._make()

    def _make(self) -> TrainingSetup:
        """Prepare the run with the present count, and trace its steps.

        Raises:
            UserError: The config cannot be trained.
        """
        prepared = prepare(self._config, self._dataset, self._warm, self.splitting.count)
        try:
            prepared.loop.trace()
        except Exception as error:
            self._warm.drop_loop()
            if is_out_of_memory(error):
                raise
            raise training_refusal(self._config, self.splitting.count, error) from error
        return prepared

    def again(self) -> None:
        """Let go of the network and what was compiled, and make them with the present count.

        Raises:
            NormbenchError: The network cannot take the smaller micro-batches.
        """
        del self.prepared  # first: two may not fit
        self._warm.drop_loop()
        try:
            self.prepared = self._make()
        except UserError as error:  # no mistake of the user's: ``auto`` chose the size
            raise NormbenchError(f"memory is short, and {error}") from error

    def close(self) -> None:
        """Leave nothing to the next run that was made for a batch split by ``auto``."""
        if self._config.accumulate == "auto" and self.splitting.count > 1:
            self._warm.drop_loop()


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


def refuse_batch(config: Config, dataset: str, images: int) -> None:
    """Refuse a batch that is larger than the training set.

    Args:
        config: The config of a run.
        dataset: Name of its data set.
        images: Number of training images, after validation is held out.

    Raises:
        UserError: The batch is larger.
    """
    if config.batch > images:
        raise UserError(
            f"batch={config.batch} is larger than the training set of {dataset} "
            f"({images} images after validation is held out)"
        )


def refuse_augmentation(config: Config, shape: tuple[int, int, int]) -> None:
    """Refuse a random crop that could show nothing of an image.

    Args:
        config: Of the run.
        shape: (H, W, C) of the images.

    Raises:
        UserError: The padding is negative or not smaller than an image.
    """
    padding, most = config.dataset["crop_padding"], min(shape[:2]) - 1
    if not 0 <= padding <= most:
        raise UserError(
            f"dataset.crop_padding must be in 0..{most} for images of {shape[0]}×{shape[1]}, "
            f"got {padding}"
        )


def training_refusal(config: Config, micro_batches: int, error: BaseException) -> UserError:
    """Build the error for a network that refuses the mini-batches it would be trained on.

    Args:
        config: Of the run.
        micro_batches: Equal parts that a batch goes through the network in.
        error: Raised while the network was traced in training mode.
    """
    size = f"batch={config.batch}"
    if micro_batches > 1:
        size += f" in {micro_batches} micro-batches of {config.batch // micro_batches}"
    return UserError(
        f"norm={config.norm_name} in arch={config.arch['name']} cannot be trained with {size}: "
        f"{why(error)}"
    )


def check_config(config: Config, warm: WarmState) -> Any:
    """Refuse what can be refused of a config without its network.

    Returns:
        The data set; with it, :func:`normbench.network.build_model` can be tried.

    Raises:
        UserError: The config cannot be trained.
        NormbenchError: The data set is damaged.
    """
    dataset = warm.dataset(config, load_dataset)
    refuse_batch(config, dataset.name, len(dataset.train.labels))
    refuse_augmentation(config, dataset.shape)
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
    total = steps * config.epochs
    if total > MOST_STEPS:
        raise UserError(
            f"epochs={config.epochs} is {total} steps at batch={config.batch}: a run has at most "
            f"{MOST_STEPS} (epochs={MOST_STEPS // steps})"
        )
    factors = course(total, **options)
    return (np.float64(peak) * factors).astype(np.float32)


def prepare(config: Config, dataset: Any, warm: WarmState, micro_batches: int) -> TrainingSetup:
    """Build all that a run is trained with; its backend must have been started.

    Args:
        config: Of the run.
        dataset: Of the run.
        warm: Of the run before in this process.
        micro_batches: Equal parts that a batch goes through the network in.

    Raises:
        UserError: The config cannot be trained, or a probe of it cannot be measured.
    """
    from normbench.engine.augment import Images
    from normbench.engine.loop import LoopSettings
    from normbench.engine.observer import make_probes
    from normbench.network import build_model, refuse_too_large

    steps = len(dataset.train.labels) // config.batch
    optimizer, rates = _optimizer(config), _rates(config, steps)
    model = build_model(config, dataset.shape, dataset.classes)
    refuse_too_large(config, model, backend.on_cpu())
    settings = LoopSettings(
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
    initialize_from(model, dataset.train.images, settings.images)
    make_loop: Any = backend.loop_class(config.backend)
    loop = warm.loop(config, make_loop(model, dataset, settings))
    probes = make_probes(config.probe)
    for probe in probes:
        probe.check(model)
    return TrainingSetup(dataset, loop.model, loop, rates, steps, probes)


def initialize_from(model: keras.Model, pixels: np.ndarray, images: Images) -> None:
    """Let the layers whose first weights depend on the data see training images.

    Such a layer has a method ``initialize_from``, called with scaled images, float32 (N, H, W, C).

    Args:
        model: Built, and not trained yet.
        pixels: uint8 (N, H, W, C), the training images; the first ``SEEN`` of them are shown.
        images: How they are scaled.
    """
    layers = [each for each in model.layers if hasattr(each, "initialize_from")]
    if not layers:
        return
    import keras

    scaled = keras.ops.convert_to_numpy(images.scale(np.ascontiguousarray(pixels[:SEEN])))
    for layer in layers:
        layer.initialize_from(scaled)
