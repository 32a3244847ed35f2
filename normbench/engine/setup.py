"""The training setup of a run: :func:`prepare` builds it, :func:`check_config` checks the config.

All errors in a run's config are reported here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from normbench.components import (
    MOST_MAGNITUDE,
    MOST_OPERATIONS,
    configured,
    is_own,
    make_source,
)
from normbench.config import Config
from normbench.engine import backend
from normbench.engine.observer import Probe, make_loggers
from normbench.engine.reuse import WarmState
from normbench.engine.weights import start_from
from normbench.errors import UserError, is_out_of_memory, why
from normbench.store.provenance import data_hash

if TYPE_CHECKING:
    import keras

    from normbench.engine.augment import Images
    from normbench.engine.loop import Loop

SHOWN_IMAGES = 5000
"""Number of training images passed to a data-dependent initialization."""
MAX_STEPS = 100_000_000
"""Limit on a run's steps, because all learning rates are computed up front (0.4 GB)."""


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a run is trained with.

    Attributes:
        dataset: The data set's three splits.
        model: The loop's model.
        loop: Compiled training and evaluation, in the run's initial state.
        rates: Learning rate of each step of the run, float32.
        steps_per_epoch: Steps per epoch; an incomplete last batch is left out.
        probes: Probes of the config.
        init: The run that the weights come from, and their hash; None for random weights.
    """

    dataset: Any
    model: keras.Model
    loop: Loop
    rates: np.ndarray
    steps_per_epoch: int
    probes: list[Probe]
    init: dict[str, str] | None = None


def prepare(config: Config, dataset: Any, warm: WarmState, micro_batches: int) -> TrainingSetup:
    """Build everything that a run is trained with; its backend must have been started.

    Args:
        config: Config of the run.
        dataset: Data set of the run.
        warm: Provides its loop if this run can use it; otherwise stores this run's loop.
        micro_batches: Number of micro-batches that a batch is split into.

    Raises:
        UserError: The config cannot be trained, or one of its probes cannot be measured.
    """
    from normbench.engine.augment import Images
    from normbench.engine.loop import LoopSettings
    from normbench.engine.loop_stream import CHUNK_BYTES
    from normbench.engine.observer import make_probes
    from normbench.network import build_model, layers_within, refuse_too_large

    refuse_devices(config)
    steps = len(dataset.train.labels) // config.batch
    optimizer, rates = _optimizer(config), learning_rates(config, steps)
    model = build_model(config, dataset.shape, dataset.classes)
    refuse_too_large(config, model, backend.on_cpu())
    augmentation = [f.name for f in fields(Images) if f.name not in ("mean", "std")]
    settings = LoopSettings(
        batch=config.batch,
        eval_batch=config.eval_batch,
        seed=config.seed,
        smoothing=config.label_smoothing,
        optimizer=optimizer,
        images=Images(
            mean=np.asarray(dataset.mean, np.float32),
            std=np.asarray(dataset.std, np.float32),
            **{key: config.dataset[key] for key in augmentation},
        ),
        scaled_loss=config.precision == "mixed_float16",
        auxiliary_weight=config.arch.get("auxiliary_weight", 0.0),
        micro_batches=micro_batches,
        devices=config.devices,
        synchronized=any(hasattr(layer, "axis_name") for layer in layers_within(model)),
        chunk_bytes=CHUNK_BYTES if dataset.streamed else 0,
    )
    initialize_from(model, dataset.train.images, settings.images)
    init = start_from(model, config) if config.init else None
    make_loop: Any = backend.loop_class(config.backend)
    loop = warm.loop(config, make_loop(model, dataset, settings))
    probes = make_probes(config.probe)
    for probe in probes:
        probe.check(model)
    return TrainingSetup(dataset, loop.model, loop, rates, steps, probes, init)


def prepare_and_trace(
    config: Config, dataset: Any, warm: WarmState, micro_batches: int
) -> TrainingSetup:
    """Prepare a run and trace its steps, so that a layer can refuse the run's mini-batches.

    Arguments and errors are those of :func:`prepare`.
    """
    setup = prepare(config, dataset, warm, micro_batches)
    try:
        setup.loop.trace()
    except Exception as error:
        warm.drop_loop()  # half traced
        if is_out_of_memory(error):
            raise
        raise training_refusal(config, micro_batches, error) from error
    return setup


def load_dataset(config: Config) -> Any:
    """Load the data set of a run and split it according to the config."""
    from normbench.data.split import load

    return load(
        make_source(config.dataset),
        config.dataset["validation"],
        config.dataset["split_seed"],
        config.dataset["train_size"],
        fingerprint=data_hash if is_own(config.dataset["_target_"]) else None,
        stream=config.stream,
    )


def initialize_from(model: keras.Model, pixels: np.ndarray, images: Images) -> None:
    """Run the data-dependent initialization of layers that have one.

    Such a layer has a method ``initialize_from``, called with scaled images, float32 (N, H, W, C).

    Args:
        model: A network that is built and not trained yet.
        pixels: Training images, uint8 (N, H, W, C); the first ``SHOWN_IMAGES`` are used.
        images: Scaling of the images.
    """
    layers = [layer for layer in model.layers if hasattr(layer, "initialize_from")]
    if not layers:
        return
    import keras

    sample = np.ascontiguousarray(pixels[:SHOWN_IMAGES])
    scaled = keras.ops.convert_to_numpy(images.scale(sample))
    for layer in layers:
        layer.initialize_from(scaled)


# --- refusals ------------------------------------------------------------------------------------


def check_config(config: Config, warm: WarmState) -> Any:
    """Check everything about a config that can be checked without its network.

    Returns:
        The data set, for a subsequent :func:`normbench.network.build_model`.

    Raises:
        UserError: The config cannot be trained.
        NormbenchError: The data set is damaged.
    """
    dataset = warm.dataset(config, load_dataset)
    refuse_batch(config, dataset.name, len(dataset.train.labels))
    refuse_augmentation(config, dataset.shape)
    make_loggers(config.logger)
    _optimizer(config)
    learning_rates(config, len(dataset.train.labels) // config.batch)
    return dataset


def training_images(config: Config, source: Any) -> int:
    """Return the number of images that a run is trained on, without loading them.

    Args:
        config: Config of the run.
        source: The run's data set, a :class:`normbench.data.base.Source`.
    """
    from normbench.data.split import sizes

    return sizes(source, config.dataset["validation"], config.dataset["train_size"])[0]


def refuse_batch(config: Config, dataset: str, images: int) -> None:
    """Refuse a batch that is larger than the training set.

    Args:
        config: Config of the run.
        dataset: Name of the run's data set.
        images: Number of training images, after validation is held out.
    """
    if config.batch > images:
        raise UserError(
            f"batch={config.batch} is larger than the training set of {dataset} "
            f"({images} images after validation is held out)"
        )


def refuse_devices(config: Config) -> None:
    """Refuse more devices than this machine has; its backend must have been started."""
    if config.devices == 1:
        return
    import jax

    count = jax.device_count()
    if config.devices > count:
        hint = ""
        if backend.on_cpu():
            hint = (
                "; to try it without GPUs, set XLA_FLAGS=--xla_force_host_platform_device_count="
                f"{config.devices}"
            )
        raise UserError(
            f"devices={config.devices} is more than this machine has (allowed: 1"
            f"{f' to {count}' if count > 1 else ''}){hint}"
        )


def refuse_augmentation(config: Config, shape: tuple[int, int, int]) -> None:
    """Refuse an augmentation that is out of range for images of ``shape`` (H, W, C).

    A random crop must not miss the image entirely, and a cutout square must not hide all of it.
    """
    padding, most = config.dataset["crop_padding"], min(shape[:2]) - 1
    if not 0 <= padding <= most:
        raise UserError(
            f"dataset.crop_padding must be in 0..{most} for images of {shape[0]}×{shape[1]}, "
            f"got {padding}"
        )
    cutout, erasing = config.dataset["cutout"], config.dataset["erasing"]
    if isinstance(cutout, bool) or not isinstance(cutout, int) or not 0 <= cutout <= most:
        raise UserError(
            f"dataset.cutout must be in 0..{most} for images of {shape[0]}×{shape[1]}, got {cutout}"
        )
    if isinstance(erasing, bool) or not 0 <= erasing <= 1:
        raise UserError(f"dataset.erasing must be in [0, 1], got {erasing:g}")
    jitter = config.dataset["jitter"]
    if isinstance(jitter, bool) or not 0 <= jitter <= 1:
        raise UserError(f"dataset.jitter must be in [0, 1], got {jitter:g}")
    for key, most in (("randaugment", MOST_OPERATIONS), ("magnitude", MOST_MAGNITUDE)):
        value = config.dataset[key]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise UserError(f"dataset.{key} must be a whole number in 0..{most}, got {value}")
    keys = [f"dataset.{key}" for key in ("jitter", "randaugment") if config.dataset[key]]
    if keys and shape[2] not in (1, 3):
        raise UserError(f"{keys[0]} needs images of 1 or 3 channels, but these have {shape[2]}")


def training_refusal(config: Config, micro_batches: int, error: BaseException) -> UserError:
    """Build the error for a network that cannot be trained on mini-batches of the run's size.

    Args:
        config: Config of the run.
        micro_batches: Number of micro-batches that a batch is split into.
        error: Error raised while the network was traced in training mode.
    """
    size = f"batch={config.batch}"
    if micro_batches > 1:
        size += f" in {micro_batches} micro-batches of {config.batch // micro_batches}"
    if config.devices > 1:
        size += f" on {config.devices} devices"
    return UserError(
        f"norm={config.norm_name} in arch={config.arch['name']} cannot be trained with {size}: "
        f"{why(error)}"
    )


# --- optimizer and learning rates ----------------------------------------------------------------


def _optimizer(config: Config) -> Any:
    keys = ("lr", "base_batch", "scaling")
    make, options = configured("optimizer", config.optimizer, keys=keys)
    if not config.optimizer["lr"] > 0:
        raise UserError(f"optimizer.lr must be above 0, got {config.optimizer['lr']:g}")
    return make(**options)


def learning_rates(config: Config, steps: int) -> np.ndarray:
    """Return the learning rate of each step of the run, float32; an epoch has ``steps`` steps."""
    from normbench.engine import schedule

    peak = schedule.peak(
        config.optimizer["lr"],
        config.batch,
        config.optimizer["base_batch"],
        config.optimizer["scaling"],
    )
    course, options = configured("schedule", config.schedule, passed=("steps",))
    total = steps * config.epochs
    if total > MAX_STEPS:
        raise UserError(
            f"epochs={config.epochs} is {total} steps at batch={config.batch}: a run has at most "
            f"{MAX_STEPS} (epochs={MAX_STEPS // steps})"
        )
    factors = course(total, **options)
    return (np.float64(peak) * factors).astype(np.float32)
