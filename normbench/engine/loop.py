"""What the loops of all backends share: their interface, the update, the names of their state."""

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
from normbench.engine.optimizer import clip_adaptively
from normbench.kernels.compile import compile_shared

GROWTH_STEPS = 2000  # finite steps after which the loss scale doubles (Micikevicius et al. 2018)


@dataclass(frozen=True)
class Steps:
    """What some consecutive training steps measured; each array has one entry per step.

    To measure something else in each step, add a field here, its dtype to ``DTYPES``, and its
    value to what ``_one_step`` of both loops returns. It is then in every checkpoint, too.

    Attributes:
        loss: Mean over the mini-batch of what was minimized, float32.
        correct: Images whose label had the highest logit, int32.
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

    def followed_by(self, later: Steps) -> Steps:
        """Return these steps and then ``later``."""
        pairs = zip(self.arrays().values(), later.arrays().values(), strict=True)
        return Steps(*map(np.concatenate, pairs))

    def first(self, count: int) -> Steps:
        """Return the first ``count`` of these steps."""
        return Steps(*(values[:count] for values in self.arrays().values()))

    def __len__(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class LoopSettings:
    """What a loop must know besides the model and the data.

    Attributes:
        batch: Images per step.
        eval_batch: Images per evaluation step.
        seed: Of the order of the images and of augmentation.
        smoothing: Of the labels, in the training loss alone.
        optimizer: Has ``slots`` and ``update`` as :class:`normbench.engine.optimizer.SGD`.
        images: Augmentation and scaling.
        scaled_loss: Whether gradients are computed in float16, so that the loss must be scaled.
        auxiliary_weight: Of the loss of each auxiliary classifier that the model has.
        micro_batches: Equal parts of a batch whose gradients are computed one after the other and
            averaged for one step. Only one part's activations are in memory at a time, and batch
            statistics are of one part. Divides ``batch``.
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

    @property
    def micro_batch(self) -> int:
        """Images that go through the network at once, and that batch statistics are of."""
        return self.batch // self.micro_batches


class Loop(ABC):
    """Training and evaluation of one model on data that lives on the device.

    State is the model's variables, the optimizer's slots and count, and the loss scale.

    Attributes:
        rate: Learning rate of the last step taken, for who asks what the next would do; said by
            who drives the loop, for a state that was loaded does not tell.
    """

    backend: str
    model: Any
    settings: LoopSettings
    rate: float | None = None

    @abstractmethod
    def trace(self) -> None:
        """Trace training and evaluation for the run's batch size, and compute nothing.

        A layer that cannot take the mini-batches raises here. :meth:`compile` uses the result.
        """

    @abstractmethod
    def compile(self) -> None:
        """Trace and compile; the state is left as it was."""

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """Draw the order and augmentation of an epoch, counted from 0."""

    @abstractmethod
    def train(self, first: int, rates: np.ndarray) -> Steps:
        """Take ``len(rates)`` steps of the epoch from its step ``first`` on.

        Args:
            first: Steps of the epoch taken before.
            rates: Learning rate of each step, float32.
        """

    @abstractmethod
    def recompute(self) -> None:
        """Recompute the population statistics of the layers that ask for it, if any does.

        From the training images in the order of the epoch, not augmented, in mini-batches of the
        size that training normalizes over.
        """

    @abstractmethod
    def evaluate(self, split: str) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy (0..1) over a split, in inference mode."""

    @abstractmethod
    def inspect(
        self, part: Any, pixels: np.ndarray, *, batch_statistics: bool = False
    ) -> list[np.ndarray]:
        """Return what a part of the model gives for images; nothing that is kept changes.

        Compiled once for each part and mode, and kept: hand over the same part each time
        (:meth:`part`).

        Args:
            part: A ``keras.Model`` made of the model's own layers, or the model itself.
            pixels: uint8 (N, H, W, C), one mini-batch.
            batch_statistics: Normalize with these images' statistics, as in training, but without
                dropout; otherwise all is as in inference.
        """

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Return the trainable weights laid end to end, as in ``model.trainable_variables``.

        float32 (P,).
        """

    def gradients(
        self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """Return the training loss of a mini-batch and its gradient; nothing that is kept changes.

        The loss is that which a step minimizes, label smoothing and auxiliary classifiers
        included, without weight decay, which belongs to the optimizer, and without augmentation;
        the gradient is as it comes, not clipped. Layers compute as in training: with the
        mini-batch's statistics, and dropping what the present state of their random numbers says,
        the same at each call. Where training splits its batches, so are more images than a part
        has. Compiled once for each number of images.

        Args:
            pixels: uint8 (N, H, W, C), one mini-batch.
            labels: int32 (N,).
            weights: Where to take it, float32 (P,) as :meth:`weights`; the present ones by default.

        Returns:
            The mean loss, and the gradient, float32 (P,). Under a loss scale that is too high for
            them some of the gradient is not finite.
        """
        at = self.weights() if weights is None else weights
        size = len(labels) if self.settings.micro_batches == 1 else self.settings.micro_batch
        if len(labels) <= size:
            return self.gradient_at(pixels, labels, at)
        loss, gradient = 0.0, np.zeros(len(at))
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            share = len(labels[part]) / len(labels)
            own_loss, own_gradient = self.gradient_at(pixels[part], labels[part], at)
            loss += share * own_loss
            gradient += share * own_gradient
        return loss, gradient.astype(np.float32)

    @abstractmethod
    def gradient_at(
        self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """As :meth:`gradients`, of images that go through the network at once."""

    def sub_model(self, key: Hashable, make: Callable[[Any], Any]) -> Any:
        """Return the part of the model that goes by ``key``; ``make(model)`` makes it, once."""
        if key not in self._parts:
            self._parts[key] = make(self.model)
        return self._parts[key]

    @cached_property
    def _parts(self) -> dict[Hashable, Any]:
        return {}

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return all that a loop of the same model needs to go on exactly."""

    @abstractmethod
    def load(self, state: dict[str, np.ndarray]) -> None:
        """Take over what :meth:`state` gave."""

    def restart(self, fresh: Loop) -> None:
        """Take over the seed and the initial state of ``fresh``, a loop of the same program.

        What was compiled here then begins the run that ``fresh`` was made for; see
        :mod:`normbench.engine.reuse` for what the two must share.
        """
        initial = fresh.state().values()  # in the same order; automatic names may differ
        self.load(dict(zip(self.state(), initial, strict=True)))
        self.settings = fresh.settings

    @abstractmethod
    def devices(self) -> list[str]:
        """Name the devices that are used."""


@contextmanager
def without_dropout(part: Any) -> Iterator[None]:
    """Have the layers of a part that drop units drop none while a function of it is traced."""
    rates = {
        layer: layer.rate
        for layer in part._flatten_layers()
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
    """A model's outputs as a list, which Keras makes none of where there is one."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def flatten(tensors: list[Any]) -> Any:
    """Lay tensors end to end: float32 (P,)."""
    return ops.concatenate([ops.reshape(ops.cast(each, "float32"), (-1,)) for each in tensors])


def unflatten(vector: Any, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Undo :func:`flatten`."""
    if len(shapes) == 1:  # which the backends cannot split into one part
        return [ops.reshape(vector, shapes[0])]
    sizes = [math.prod(shape) for shape in shapes]
    parts = ops.split(vector, list(np.cumsum(sizes)[:-1]))
    return [ops.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]


def decay_mask(variables: list[Any]) -> np.ndarray:
    """1 for each weight that weight decay applies to, else 0: float32 (P,)."""
    from normbench.engine.optimizer import is_decayed

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
    """One step of the optimizer over parts, guarded by the loss scale where there is one.

    With a scaled loss, a step whose gradient is not finite is left out and the scale halved;
    it doubles after ``GROWTH_STEPS`` finite ones (Micikevicius et al. 2018, section 3.2).

    Args:
        settings: Has the optimizer.
        weights: All of them, as vectors, each float32 (P,).
        gradients: Of the loss times its scale, as the weights are.
        slots: For each part, what the optimizer keeps of it, float32 (P,).
        rate: The learning rate, float32 scalar.
        step: Steps taken before this one, int32 scalar.
        decayed: For each part, 1 where weight decay applies, else 0.
        scale: The scale of the loss, and the finite steps since it last changed.

    Returns:
        The weights, the slots, the scale with its count of finite steps, and the norm of the
        gradient.
    """
    factor, finite_steps = scale
    if settings.scaled_loss:
        gradients = [gradient / factor for gradient in gradients]
    norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
    guard = [ops.isfinite(norm)] if settings.scaled_loss else []
    new_weights, new_slots = [], []
    for part, gradient, its_slots, its_decayed in zip(
        weights, gradients, slots, decayed, strict=True
    ):
        update = compile_shared(_part_updated, part)
        tensors = (part, gradient, rate, step, its_decayed, *its_slots, *guard)
        part, *its_slots = update(*tensors, optimizer=settings.optimizer)
        new_weights.append(part)
        new_slots.append(its_slots)
    if guard:
        finite_steps = ops.where(guard[0], finite_steps + 1, 0)
        grown = finite_steps >= GROWTH_STEPS
        factor = ops.where(guard[0], ops.where(grown, factor * 2.0, factor), factor * 0.5)
        finite_steps = ops.where(grown, 0, finite_steps)
    return new_weights, new_slots, (factor, finite_steps), norm


def _part_updated(
    weights: Any, gradient: Any, rate: Any, step: Any, decayed: Any, *rest: Any, optimizer: Any
) -> list[Any]:
    """Weights and slots after a step; given, last, the slots, and whether they are to change."""
    slots, guard = list(rest[: optimizer.slots]), rest[optimizer.slots :]
    new, new_slots = optimizer.update(weights, gradient, slots, rate, step, decayed)
    if not guard:
        return [new, *new_slots]
    olds = [weights, *slots]
    return [ops.where(guard[0], a, b) for a, b in zip([new, *new_slots], olds, strict=True)]


def clip_gradients(
    settings: LoopSettings,
    variables: list[Any],
    weights: list[Any],
    gradients: list[Any],
    scale: Any,
) -> list[Any]:
    """Clip gradients of the loss times ``scale`` where the optimizer asks for it."""
    if not settings.optimizer.agc:
        return gradients
    factor = scale if settings.scaled_loss else 1.0
    return clip_adaptively(variables, weights, gradients, settings.optimizer.agc, factor)


def apply_constraints(variables: list[Any], values: list[Any]) -> list[Any]:
    """Pass each new value through its variable's Keras constraint, where it has one."""
    return [
        value if variable.constraint is None else variable.constraint(value)
        for variable, value in zip(variables, values, strict=True)
    ]


def variable_names(variables: list[Any]) -> list[str]:
    """Name a model's variables for a checkpoint: their paths, made unique by their position."""
    return [f"model/{index:03d}/{variable.path}" for index, variable in enumerate(variables)]


# --- the loss that is minimized and the count that accuracy is made of ----------------------------


def cross_entropy(logits: Any, labels: Any, smoothing: float) -> Any:
    """Softmax cross-entropy of each image, with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        logits: (N, K), any float dtype; computed in float32.
        labels: int32 (N,).
        smoothing: Share of the target that is spread evenly over all classes.

    Returns:
        Natural-log loss, float32 (N,).
    """
    log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
    classes = logits.shape[-1]
    target = ops.one_hot(labels, classes, dtype="float32") * (1.0 - smoothing)
    return -ops.sum((target + smoothing / classes) * log_probabilities, axis=-1)


def objective(outputs: Any, labels: Any, smoothing: float, auxiliary_weight: float) -> Any:
    """What is minimized: the mean cross-entropy, and a share of each auxiliary classifier's.

    Args:
        outputs: Of the model in training: logits (N, K), or a list of the logits and those of
            auxiliary classifiers (Szegedy et al. 2015, section 5).
        labels: int32 (N,).
        smoothing: As for :func:`cross_entropy`.
        auxiliary_weight: Of each auxiliary classifier's loss.

    Returns:
        float32 scalar.
    """
    logits, *auxiliary = outputs if isinstance(outputs, list | tuple) else [outputs]
    loss = ops.mean(cross_entropy(logits, labels, smoothing))
    for each in auxiliary:
        loss += auxiliary_weight * ops.mean(cross_entropy(each, labels, smoothing))
    return loss


def logits_of(outputs: Any) -> Any:
    """The classifier's logits (N, K) among a model's outputs, which may be several."""
    return outputs[0] if isinstance(outputs, list | tuple) else outputs


def correct(logits: Any, labels: Any) -> Any:
    """How many images have their label's logit on top: int32 scalar."""
    hits = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    return ops.sum(ops.cast(hits, "int32"))
