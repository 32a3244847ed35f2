"""The interface of the training loops, :class:`Loop`, and the code that all backends share.

A loop has the data, or a chunk of it, on the device and runs many steps in one compiled call. There
are implementations for TensorFlow and JAX; the weight update, the loss and the names of the state
are defined here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from keras import ops

from normbench.engine.augment import Images
from normbench.engine.loop_stream import ImageStream
from normbench.engine.optimizer import clip_adaptively, is_decayed
from normbench.kernels.compile import compile_shared

GROWTH_STEPS = 2000
"""Finite steps after which the loss scale doubles (Micikevicius et al. 2018)."""


@dataclass(frozen=True)
class Steps:
    """Measurements of consecutive training steps; each array has one entry per step.

    To measure something else in each step, add a field here, its name to ``NAMES``, its dtype to
    ``DTYPES``, and its value to the result of ``_one_step`` in both loops. Checkpoints then include
    it, too.

    Attributes:
        loss: Minimized loss, averaged over the mini-batch, float32.
        correct: Number of images whose label had the highest logit, int32.
        grad_norm: Euclidean norm of the gradient over all weights, without weight decay, float32.
    """

    loss: np.ndarray
    correct: np.ndarray
    grad_norm: np.ndarray

    NAMES: ClassVar = ("loss", "correct", "grad_norm")
    DTYPES: ClassVar = ("float32", "int32", "float32")

    @classmethod
    def empty(cls) -> Steps:
        return cls(*(np.zeros(0, dtype) for dtype in cls.DTYPES))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    def followed_by(self, *later: Steps) -> Steps:
        """Return these steps and then ``later``."""
        columns = zip(*(steps.arrays().values() for steps in (self, *later)), strict=True)
        return Steps(*map(np.concatenate, columns))

    def first(self, count: int) -> Steps:
        """Return the first ``count`` of these steps."""
        return Steps(*(values[:count] for values in self.arrays().values()))

    def __len__(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a loop other than the model and the data.

    Attributes:
        batch: Images per step.
        eval_batch: Images per evaluation step.
        seed: Seed of the order of the images and of augmentation.
        smoothing: Label smoothing of the training loss; evaluation uses none.
        optimizer: Has ``slots`` and ``update`` as :class:`normbench.engine.optimizer.SGD`.
        images: Augmentation and scaling.
        scaled_loss: Whether to scale the loss, as float16 gradients require.
        auxiliary_weight: Weight of the loss of each auxiliary classifier in the model.
        micro_batches: Number of micro-batches of equal size that a batch is split into; divides
            ``batch``. Their gradients are computed one after the other and averaged for one step:
            only one micro-batch's activations are in memory at a time, and batch statistics are
            computed per micro-batch.
        devices: Number of devices that each micro-batch is split over in equal shares; each device
            has all weights. Batch statistics are computed per share.
        synchronized: Whether batch statistics are computed over all devices' shares instead.
        chunk_bytes: Bytes of images that are copied to the device at once
            (:mod:`normbench.engine.loop_stream`); 0 if all images are there from the start.
    """

    batch: int
    eval_batch: int
    seed: int
    smoothing: float
    optimizer: Any
    images: Images
    scaled_loss: bool
    auxiliary_weight: float = 0.0
    micro_batches: int = 1
    devices: int = 1
    synchronized: bool = False
    chunk_bytes: int = 0

    @property
    def micro_batch(self) -> int:
        """Number of images that share batch statistics in a pass through the network."""
        shares = 1 if self.synchronized else self.devices
        return self.batch // (self.micro_batches * shares)


class Loop(ABC):
    """Training and evaluation of one model.

    The state consists of the model's variables, the optimizer's slots and step count, and the loss
    scale.

    Attributes:
        rate: Learning rate of the last step, for probes that compute the next step. It is set by
            the caller, because a loaded state does not contain it.
        stream: Reads the images, if they are not all on the device.
    """

    backend: str
    model: Any
    settings: LoopSettings
    rate: float | None = None
    stream: ImageStream | None = None

    @abstractmethod
    def trace(self) -> None:
        """Trace training and evaluation for the run's batch size without computing anything.

        A layer that does not support the mini-batches raises here. :meth:`compile` reuses the
        trace.
        """

    @abstractmethod
    def compile(self) -> None:
        """Trace and compile without changing the state."""

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """Draw the order and augmentation of an epoch, counted from 0."""

    def close(self) -> None:
        """Stop reading images ahead. The loop can be used again, from :meth:`begin_epoch` on."""
        if self.stream is not None:
            self.stream.close()

    @abstractmethod
    def train(self, first: int, rates: np.ndarray) -> Steps:
        """Take ``len(rates)`` steps of the epoch, starting with its step ``first``.

        Args:
            first: Number of steps of the epoch taken before.
            rates: Learning rate of each step, float32.
        """

    @abstractmethod
    def recompute(self) -> None:
        """Recompute the population statistics of layers that request it, if there are any.

        They are computed from the training images in the order of the epoch, without augmentation,
        in mini-batches of the size that training normalizes over.
        """

    @abstractmethod
    def evaluate(self, split: str) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy (0..1) over a split, in inference mode."""

    @abstractmethod
    def inspect(
        self, sub_model: Any, pixels: np.ndarray, *, batch_statistics: bool = False
    ) -> list[np.ndarray]:
        """Return the outputs of a sub-model for images, without changing the loop's state.

        The function is compiled once for each sub-model and mode, so pass the same object each
        time: the one that :meth:`sub_model` returns.

        Args:
            sub_model: A ``keras.Model`` made of the model's own layers, or the model itself.
            pixels: One mini-batch, uint8 (N, H, W, C).
            batch_statistics: Normalize with these images' statistics, as in training, but without
                dropout. By default the model is in inference mode.
        """

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Return the trainable weights laid end to end, float32 (P,).

        Their order is that of ``model.trainable_variables``.
        """

    def gradients(
        self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """Return the training loss of a mini-batch and its gradient, without changing the state.

        The loss is the one that a step minimizes, with label smoothing and auxiliary classifiers,
        but without augmentation, and without weight decay, which belongs to the optimizer. The
        gradient is not clipped. Layers are in training mode: they use the mini-batch's statistics,
        and dropout draws from the present state of its random numbers, so that each call drops the
        same units. A run that splits its batches splits these images, too. The function is compiled
        once for each number of images.

        Args:
            pixels: One mini-batch, uint8 (N, H, W, C).
            labels: Labels, int32 (N,).
            weights: Weights at which to take the gradient, float32 (P,) as :meth:`weights`; the
                present ones by default.

        Returns:
            The mean loss, and the gradient, float32 (P,). Elements of the gradient are not finite
            if they overflow at the present loss scale.
        """
        at = self.weights() if weights is None else weights
        is_single = self.settings.micro_batch == self.settings.batch
        size = len(labels) if is_single else self.settings.micro_batch
        if len(labels) <= size:
            return self.gradient_at(pixels, labels, at)
        loss, gradient = 0.0, np.zeros(len(at))
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            share = len(labels[part]) / len(labels)
            micro_loss, micro_gradient = self.gradient_at(pixels[part], labels[part], at)
            loss += share * micro_loss
            gradient += share * micro_gradient
        return loss, gradient.astype(np.float32)

    @abstractmethod
    def gradient_at(
        self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Compute :meth:`gradients` of images in a single pass through the network."""

    def sub_model(self, key: Hashable, make: Callable[[Any], Any]) -> Any:
        """Return the sub-model stored under ``key``; ``make(model)`` builds it the first time."""
        if key not in self._sub_models:
            self._sub_models[key] = make(self.model)
        return self._sub_models[key]

    @cached_property
    def _sub_models(self) -> dict[Hashable, Any]:
        return {}

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return everything that a loop of the same model needs to continue bit-identically."""

    @abstractmethod
    def load(self, state: dict[str, np.ndarray]) -> None:
        """Load a state that :meth:`state` returned."""

    def restart(self, fresh: Loop) -> None:
        """Adopt the seed and the initial state of ``fresh``, a loop of the same program.

        The functions compiled here then train the run that ``fresh`` was made for. The two runs
        must agree in :func:`normbench.engine.reuse.program`.
        """
        initial = fresh.state().values()  # in the same order; automatic names may differ
        self.load(dict(zip(self.state(), initial, strict=True)))
        self.settings = fresh.settings

    @abstractmethod
    def devices(self) -> list[str]:
        """Return the names of the devices in use."""


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Within the context, disable a model's dropout layers for tracing."""
    from normbench.network import layers_within

    rates = {
        layer: layer.rate
        for layer in layers_within(model)
        if hasattr(layer, "rate") and hasattr(layer, "seed_generator")
    }
    try:
        for layer in rates:
            layer.rate = 0.0
        yield
    finally:
        for layer, rate in rates.items():
            layer.rate = rate


def as_list(outputs: Any) -> list[Any]:
    """Return a model's outputs as a list; Keras returns a single output by itself."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def flatten(tensors: list[Any]) -> Any:
    """Lay tensors end to end, float32 (P,)."""
    return ops.concatenate([ops.reshape(ops.cast(tensor, "float32"), (-1,)) for tensor in tensors])


def unflatten(vector: Any, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Undo :func:`flatten`."""
    if len(shapes) == 1:  # the backends cannot split a vector into one piece
        return [ops.reshape(vector, shapes[0])]
    sizes = [math.prod(shape) for shape in shapes]
    pieces = ops.split(vector, list(np.cumsum(sizes)[:-1]))
    return [ops.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def splits_as(dataset: Any, convert: Callable[[np.ndarray], Any]) -> dict[str, tuple[Any, Any]]:
    """Return images and labels of each split by its name, converted to tensors of a backend."""
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {name: (convert(split.images), convert(split.labels)) for name, split in splits.items()}


def stream_of(
    dataset: Any, settings: LoopSettings, put: Callable[[np.ndarray], Any]
) -> ImageStream | None:
    """Return the stream of a data set, or None if all its images are on the device.

    Args:
        dataset: Has the splits train, validation and test.
        settings: Has the size of chunks.
        put: Copies an array to the device.
    """
    if not settings.chunk_bytes:
        return None
    sizes = settings.batch, settings.eval_batch, settings.chunk_bytes
    return ImageStream(dataset, *sizes, put)


def decay_mask(variables: list[Any]) -> np.ndarray:
    """Return 1 for each weight that weight decay applies to, else 0: float32 (P,)."""
    return np.concatenate(
        [np.full(math.prod(v.shape), float(is_decayed(v)), np.float32) for v in variables]
    )


def update_weights(
    settings: LoopSettings,
    weights: list[Any],
    gradients: list[Any],
    slots: list[list[Any]],
    rate: Any,
    step: Any,
    decayed: list[Any],
    scale: tuple[Any, Any],
) -> tuple[list[Any], list[list[Any]], tuple[Any, Any], Any]:
    """Take one step of the optimizer, guarded by the loss scale if there is one.

    With a scaled loss, a step whose gradient is not finite is skipped and the scale is halved;
    the scale doubles after ``GROWTH_STEPS`` finite steps (Micikevicius et al. 2018, section 3.2).

    The weights are laid out in one or several vectors; see ``WeightVectors`` in
    :mod:`normbench.engine.flat_weights`.

    Args:
        settings: Has the optimizer.
        weights: Vectors of weights, each float32 (P,).
        gradients: Gradients of the scaled loss, one vector for each of ``weights``.
        slots: For each vector of weights, the optimizer's slots, each float32 (P,).
        rate: The learning rate, float32 scalar.
        step: Number of steps taken before this one, int32 scalar.
        decayed: For each vector of weights, 1 where weight decay applies, else 0.
        scale: The loss scale, and the number of finite steps since it last changed.

    Returns:
        The weights, the slots, the scale with its number of finite steps, and the norm of the
        gradient.
    """
    factor, finite_steps = scale
    if settings.scaled_loss:
        gradients = [gradient / factor for gradient in gradients]
    norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
    guard = [ops.isfinite(norm)] if settings.scaled_loss else []
    new_weights, new_slots = [], []
    for vector, gradient, vector_slots, decay in zip(
        weights, gradients, slots, decayed, strict=True
    ):
        update = compile_shared(_update_vector, vector)
        tensors = (vector, gradient, rate, step, decay, *vector_slots, *guard)
        new_vector, *new_vector_slots = update(*tensors, optimizer=settings.optimizer)
        new_weights.append(new_vector)
        new_slots.append(new_vector_slots)
    if guard:
        finite_steps = ops.where(guard[0], finite_steps + 1, 0)
        is_due = finite_steps >= GROWTH_STEPS
        factor = ops.where(guard[0], ops.where(is_due, factor * 2.0, factor), factor * 0.5)
        finite_steps = ops.where(is_due, 0, finite_steps)
    return new_weights, new_slots, (factor, finite_steps), norm


def _update_vector(
    weights: Any,
    gradient: Any,
    rate: Any,
    step: Any,
    decayed: Any,
    *slots_and_guard: Any,
    optimizer: Any,
) -> list[Any]:
    """Return the weights and slots after a step.

    ``slots_and_guard`` are the slots and, with a scaled loss, a boolean that is false if the step
    must be skipped.
    """
    slots = list(slots_and_guard[: optimizer.slots])
    guard = slots_and_guard[optimizer.slots :]
    new_weights, new_slots = optimizer.update(weights, gradient, slots, rate, step, decayed)
    if not guard:
        return [new_weights, *new_slots]
    pairs = zip([new_weights, *new_slots], [weights, *slots], strict=True)
    return [ops.where(guard[0], new_value, old_value) for new_value, old_value in pairs]


def clip_gradients(
    settings: LoopSettings,
    variables: list[Any],
    weights: list[Any],
    gradients: list[Any],
    scale: Any,
) -> list[Any]:
    """Clip the gradients of the loss times ``scale``, if the optimizer clips."""
    if not settings.optimizer.agc:
        return gradients
    factor = scale if settings.scaled_loss else 1.0
    return clip_adaptively(variables, weights, gradients, settings.optimizer.agc, factor)


def apply_constraints(variables: list[Any], values: list[Any]) -> list[Any]:
    """Apply each variable's Keras constraint, if it has one, to its new value."""
    return [
        value if variable.constraint is None else variable.constraint(value)
        for variable, value in zip(variables, values, strict=True)
    ]


def variable_names(variables: list[Any]) -> list[str]:
    """Return names of a model's variables for a checkpoint: indexed paths, which are unique."""
    return [f"model/{index:03d}/{variable.path}" for index, variable in enumerate(variables)]


# --- loss and accuracy ----------------------------------------------------------------------------


def cross_entropy(logits: Any, labels: Any, smoothing: float) -> Any:
    """Return each image's softmax cross-entropy with label smoothing (Szegedy et al. 2016, § 7).

    Args:
        logits: Logits (N, K) of any float dtype; computed in float32.
        labels: Labels, int32 (N,).
        smoothing: Share of the target that is spread evenly over all classes.

    Returns:
        Natural-log loss, float32 (N,).
    """
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    classes = logits.shape[-1]
    target = ops.one_hot(labels, classes, dtype="float32") * (1.0 - smoothing)
    return -ops.sum((target + smoothing / classes) * log_probabilities, axis=-1)


def objective(outputs: Any, labels: Any, smoothing: float, auxiliary_weight: float) -> Any:
    """Return the loss to minimize: mean cross-entropy, plus that of auxiliary classifiers.

    Args:
        outputs: Outputs of the model in training: logits (N, K), or a list of the logits and
            those of auxiliary classifiers (Szegedy et al. 2015, section 5).
        labels: Labels, int32 (N,).
        smoothing: See :func:`cross_entropy`.
        auxiliary_weight: Weight of each auxiliary classifier's loss.

    Returns:
        float32 scalar.
    """
    logits, *auxiliary = outputs if isinstance(outputs, list | tuple) else [outputs]
    loss = ops.mean(cross_entropy(logits, labels, smoothing))
    for auxiliary_logits in auxiliary:
        loss += auxiliary_weight * ops.mean(cross_entropy(auxiliary_logits, labels, smoothing))
    return loss


def logits_of(outputs: Any) -> Any:
    """Return the classifier's logits (N, K), the first of a model's outputs."""
    return outputs[0] if isinstance(outputs, list | tuple) else outputs


def correct(logits: Any, labels: Any) -> Any:
    """Count the images whose label has the highest logit: int32 scalar."""
    hits = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    return ops.sum(ops.cast(hits, "int32"))
