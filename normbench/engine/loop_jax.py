"""The loop on JAX: an epoch's steps as one ``lax`` loop over a functional state.

With ``devices`` above 1, every device has all images and the complete state. Micro-batches are
split: each device runs forward and backward on its share. Loss, gradients and moving statistics are
averaged over the devices, which then all apply the same weight update.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normbench.engine import loop
from normbench.engine.loop import (
    Loop,
    LoopSettings,
    Steps,
    correct,
    cross_entropy,
    logits_of,
    objective,
)
from normbench.engine.random import AUGMENT, epoch_order, epoch_words
from normbench.norms.precise_batch import recomputed_layers

State = dict[str, Any]

REPLICAS = "replicas"
"""Name of the axis over devices; :class:`SynchronizedBatchNormalization` sums over it."""

_EVERYWHERE, _SHARED_OUT = PartitionSpec(), PartitionSpec(REPLICAS)
_STRIDE = np.uint32(0x9E3779B9)
"""Distance between the seeds of two devices: 2³² over the golden ratio, so that none are close."""


class JaxLoop(Loop):
    """A :class:`Loop` that passes its state through compiled functions."""

    backend = "jax"

    def __init__(self, model: keras.Model, dataset: Any, settings: LoopSettings) -> None:
        self.model = model
        self.settings = settings
        self._mesh = _mesh(settings.devices)
        self.stream = loop.stream_of(dataset, settings, self._put)
        self._splits = {} if self.stream else loop.splits_as(dataset, self._put)
        self._count = len(dataset.train.labels)
        self._steps = self._count // settings.batch
        self._variables = list(model.trainable_variables)
        self._shapes = [tuple(v.shape) for v in self._variables]
        self._decayed = jnp.asarray(loop.decay_mask(self._variables))
        self._state: State = {
            # Copies, because the compiled steps donate the state's buffers.
            "trainable": [jnp.array(v.value) for v in self._variables],
            "other": [jnp.array(v.value) for v in model.non_trainable_variables],
            "slots": [jnp.zeros_like(self._decayed) for _ in range(settings.optimizer.slots)],
            "step": jnp.int32(0),
            "scale": (jnp.float32(2.0**15), jnp.int32(0)),
        }
        self._state = self._on_all(self._state)
        self._epoch: Any = None
        if self.stream:
            self._in_order = self._put(np.arange(self.stream.images, dtype=np.int32))
        self._draw = jax.jit(self._draw_epoch)
        self._run = jax.jit(self._run_steps, donate_argnums=0)
        self._recompute = jax.jit(self._see_training_images)
        self._score = jax.jit(self._score_split)
        self._gradient = jax.jit(self._gradient_of)
        self._inspections: dict[tuple[int, bool], tuple[Any, Any]] = {}

    def trace(self) -> None:
        number, rates = jnp.int32(0), jnp.zeros(self._steps, jnp.float32)
        weights = self._state["trainable"], self._state["other"]
        if self.stream:
            data, epoch = self._chunk_shapes(self.stream.images)
            self._run.trace(self._state, data, epoch, number, number, rates)
            # Other sizes are traced when needed; this one shows whether a layer refuses images.
            self._score.trace(*weights, *self._chunk_shapes(self.settings.eval_batch)[0])
            return
        epoch = jax.eval_shape(self._draw, jnp.int32(0), jnp.uint32(0))
        self._run.trace(self._state, self._splits["train"], epoch, number, number, rates)
        for split in ("validation", "test"):
            self._score.trace(*weights, *self._splits[split])

    def _chunk_shapes(self, count: int) -> tuple[Any, Any]:
        """Return shapes of ``count`` images and labels, and of their order and random words."""
        assert self.stream is not None
        spec = jax.ShapeDtypeStruct
        data = spec((count, *self.stream.shape), jnp.uint8), spec((count,), jnp.int32)
        return data, (spec((count,), jnp.int32), *(spec((count,), jnp.uint32),) * 2)

    def compile(self) -> None:
        self.begin_epoch(0)
        self.train(0, np.zeros(0, np.float32))

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = self._draw(jnp.int32(epoch), jnp.uint32(self.settings.seed))
        if self.stream:
            order, *words = (np.asarray(values) for values in self._epoch)
            self.stream.begin_epoch(order, tuple(words))
            self._epoch = None

    def train(self, first: int, rates: np.ndarray) -> Steps:
        if self.stream is None:
            return self._take_steps(self._splits["train"], self._epoch, first, rates)
        steps = []
        for chunk, start, chunk_rates in self.stream.training(first, rates):
            data, epoch = (chunk.images, chunk.labels), (self._in_order, *chunk.words)
            steps.append(self._take_steps(data, epoch, start, chunk_rates))
        return Steps.empty().followed_by(*steps)

    def _take_steps(self, data: Any, epoch: Any, first: int, rates: np.ndarray) -> Steps:
        """Take steps on images and labels, starting with step ``first`` of their order."""
        count = len(rates)
        padded = np.zeros(self._steps, np.float32)
        padded[:count] = rates
        self._state, history = self._run(
            self._state,
            data,
            epoch,
            jnp.int32(first),
            jnp.int32(count),
            jnp.asarray(padded),
        )
        return Steps(*(np.asarray(values)[:count] for values in history))

    def recompute(self) -> None:
        layers = recomputed_layers(self.model)
        if not layers:
            return
        variables = self.model.non_trainable_variables

        def assign(values: list[Any]) -> None:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

        assign(self._state["other"])
        for layer in layers:
            layer.begin()
        other = [jnp.array(variable.value) for variable in variables]
        trainable = self._state["trainable"]
        if self.stream is None:
            other = self._recompute(trainable, other, self._splits["train"][0], self._epoch[0])
        else:
            with closing(self.stream.population(self.settings.micro_batch)) as chunks:
                for images in chunks:
                    in_order = self._put(np.arange(len(images), dtype=np.int32))
                    other = self._recompute(trainable, other, images, in_order)
        assign(other)
        for layer in layers:
            layer.finish()
        self._state["other"] = self._on_all([jnp.array(v.value) for v in variables])

    def evaluate(self, split: str) -> tuple[float, float]:
        if self.stream is None:
            return self._evaluated([self._splits[split]])
        with closing(self.stream.evaluation(split)) as chunks:
            return self._evaluated(chunks)

    def _evaluated(self, chunks: Iterable[tuple[Any, Any]]) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy over chunks of images and labels."""
        weights = self._state["trainable"], self._state["other"]
        losses, hits, count = [], 0, 0
        for images, labels in chunks:
            batch_losses, batch_hits = self._score(*weights, images, labels)
            losses.append(np.asarray(batch_losses))
            hits += int(batch_hits)
            count += len(labels)
        return float(np.sum(np.concatenate(losses), dtype=np.float64)) / count, hits / count

    def inspect(
        self, sub_model: Any, pixels: np.ndarray, *, batch_statistics: bool = False
    ) -> list[np.ndarray]:
        key = (id(sub_model), batch_statistics)
        if key not in self._inspections:

            def function(trainable: Any, other: Any, pixels: Any) -> list[Any]:
                scaled = self.settings.images.scale(pixels)
                with loop.without_dropout(sub_model):
                    outputs, _ = sub_model.stateless_call(
                        trainable, other, scaled, training=batch_statistics
                    )
                return loop.as_list(outputs)

            # Store the sub-model, too, so that no other object can get its id.
            self._inspections[key] = (sub_model, jax.jit(function))
        values = self._values()
        outputs = self._inspections[key][1](
            [values[id(v)] for v in sub_model.trainable_variables],
            [values[id(v)] for v in sub_model.non_trainable_variables],
            jnp.asarray(pixels),
        )
        return [np.asarray(output) for output in outputs]

    def weights(self) -> np.ndarray:
        values = [np.asarray(value).ravel() for value in self._state["trainable"]]
        return np.concatenate(values).astype(np.float32)

    def gradient_at(
        self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        loss, gradient = self._gradient(
            jnp.asarray(weights, jnp.float32),
            self._state["other"],
            self._state["scale"][0],
            jnp.asarray(pixels),
            jnp.asarray(labels, jnp.int32),
        )
        return float(loss), np.asarray(gradient)

    def _values(self) -> dict[int, Any]:
        """Return the state's value of each variable of the model, by the variable's id."""
        variables = [*self._variables, *self.model.non_trainable_variables]
        state = [*self._state["trainable"], *self._state["other"]]
        return dict(zip([id(v) for v in variables], state, strict=True))

    def state(self) -> dict[str, np.ndarray]:
        state = self._state
        values = self._values()
        variables = self.model.variables
        names = loop.variable_names(variables)
        arrays = {name: values[id(v)] for name, v in zip(names, variables, strict=True)}
        arrays.update({f"optimizer/slot{i}": slot for i, slot in enumerate(state["slots"])})
        arrays["optimizer/step"] = state["step"]
        if self.settings.scaled_loss:
            arrays["loss_scale/factor"], arrays["loss_scale/finite_steps"] = state["scale"]
        return {name: np.array(value) for name, value in arrays.items()}

    def load(self, state: dict[str, np.ndarray]) -> None:
        variables = self.model.variables
        names = loop.variable_names(variables)
        values = {id(v): state[name] for name, v in zip(names, variables, strict=True)}
        slots = len(self._state["slots"])
        scale = self._state["scale"]
        if self.settings.scaled_loss:
            scale = (state["loss_scale/factor"], state["loss_scale/finite_steps"])
        self._state = {
            "trainable": [jnp.array(values[id(v)]) for v in self._variables],
            "other": [jnp.array(values[id(v)]) for v in self.model.non_trainable_variables],
            "slots": [jnp.array(state[f"optimizer/slot{i}"]) for i in range(slots)],
            "step": jnp.array(state["optimizer/step"]),
            "scale": (jnp.array(scale[0]), jnp.array(scale[1])),
        }
        self._state = self._on_all(self._state)

    def devices(self) -> list[str]:
        devices = jax.devices() if self._mesh is None else self._mesh.devices.flat
        return [f"{device.platform}:{device.id} {device.device_kind}" for device in devices]

    def _put(self, values: np.ndarray) -> Any:
        """Copy an array to each device of the run."""
        return self._on_all(jnp.asarray(values))

    def _on_all(self, tree: Any) -> Any:
        """Return arrays with a copy on each device of the run."""
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, _EVERYWHERE))

    def _shared_out(self, images: Any) -> Any:
        """Tell the compiler to split images into equal shares, one per device."""
        if self._mesh is None or images.shape[0] % self.settings.devices:
            return images
        return lax.with_sharding_constraint(images, NamedSharding(self._mesh, _SHARED_OUT))

    def _draw_epoch(self, epoch: Any, seed: Any) -> Any:
        order = epoch_order(seed, epoch, self._count)
        return order, *epoch_words(seed, AUGMENT, epoch, self._count)

    def _run_steps(
        self, state: State, data: Any, epoch: Any, first: Any, count: Any, rates: Any
    ) -> tuple[State, Any]:
        history = tuple(jnp.zeros(self._steps, dtype) for dtype in Steps.DTYPES)

        def body(index: Any, carry: Any) -> Any:
            state, history = carry
            state, values = self._one_step(state, data, epoch, first + index, rates[index])
            return state, tuple(h.at[index].set(v) for h, v in zip(history, values, strict=True))

        return lax.fori_loop(0, count, body, (state, history))

    def _one_step(
        self, state: State, data: Any, epoch: Any, position: Any, rate: Any
    ) -> tuple[State, Any]:
        settings, batch = self.settings, self.settings.batch
        start = position * batch
        indices, word0, word1 = (lax.dynamic_slice(vector, (start,), (batch,)) for vector in epoch)
        images, labels = data
        pixels = settings.images.augment(images[indices], (word0, word1))
        pixels, labels = self._shared_out(pixels), labels[indices]
        if settings.micro_batches == 1:
            loss, hits, other, gradients = self._pass(state, state["other"], pixels, labels)
        else:
            loss, hits, other, gradients = self._passes(state, pixels, labels)
        gradients = loop.clip_gradients(
            settings, self._variables, state["trainable"], gradients, state["scale"][0]
        )
        # A single vector of all weights, because XLA compiles the complete step as one program.
        (weights,), (slots,), scale, norm = loop.update_weights(
            settings,
            [loop.flatten(state["trainable"])],
            [loop.flatten(gradients)],
            [state["slots"]],
            rate,
            state["step"],
            [self._decayed],
            state["scale"],
        )
        values = loop.unflatten(weights, self._shapes)
        new_state = {
            "trainable": loop.apply_constraints(self._variables, values),
            "other": other,
            "slots": slots,
            "step": state["step"] + 1,
            "scale": scale,
        }
        return new_state, (loss, hits, norm)

    def _pass(
        self, state: State, other: Any, pixels: Any, labels: Any
    ) -> tuple[Any, Any, Any, list[Any]]:
        """Run one micro-batch forward and backward, on all devices of the run.

        Returns:
            Loss, number of correct images, values of the non-trainable variables, and gradients of
            the scaled loss.
        """
        arguments = state["trainable"], other, state["scale"][0], pixels, labels
        if self._mesh is None:
            return self._pass_here(*arguments)
        replicated, shares = (_EVERYWHERE,) * 3, (_SHARED_OUT,) * 2
        # With check_vma=False, the gradient of a sum over devices in synchronized layers is that of
        # all devices' losses, as the mean over devices below requires.
        on_all = jax.shard_map(
            self._pass_share,
            mesh=self._mesh,
            in_specs=(*replicated, *shares),
            out_specs=_EVERYWHERE,
            check_vma=False,
        )
        return on_all(*arguments)

    def _pass_here(
        self, trainable: Any, other: Any, scale: Any, pixels: Any, labels: Any
    ) -> tuple[Any, Any, Any, list[Any]]:
        (_, (loss, logits, new_other)), gradients = jax.value_and_grad(
            self._minimized, has_aux=True
        )(trainable, other, scale, pixels, labels)
        return loss, correct(logits, labels), new_other, gradients

    def _pass_share(
        self, trainable: Any, other: Any, scale: Any, pixels: Any, labels: Any
    ) -> tuple[Any, Any, Any, list[Any]]:
        """Compute :meth:`_pass_here` on one device's share and return the mean over devices."""
        index = lax.axis_index(REPLICAS)

        def is_seed(value: Any) -> bool:
            return value.dtype == jnp.uint32  # the state of a layer's random numbers

        # Each device draws different random numbers, as different images do on one device.
        device_other = [v + index.astype(v.dtype) * _STRIDE if is_seed(v) else v for v in other]
        loss, hits, new_other, gradients = self._pass_here(
            trainable, device_other, scale, pixels, labels
        )

        def joined(value: Any) -> Any:
            if jnp.issubdtype(value.dtype, jnp.floating):
                return lax.pmean(value, REPLICAS)
            return value - index.astype(value.dtype) * _STRIDE if is_seed(value) else value

        loss, new_other, gradients = jax.tree.map(joined, (loss, new_other, gradients))
        return loss, lax.psum(hits, REPLICAS), new_other, gradients

    def _minimized(
        self, trainable: Any, other: Any, scale: Any, pixels: Any, labels: Any
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        """Return the scaled loss of one pass, and the loss, logits and non-trainable values."""
        settings = self.settings
        outputs, new_other, losses = self.model.stateless_call(
            trainable, other, settings.images.scale(pixels), training=True, return_losses=True
        )
        loss = objective(outputs, labels, settings.smoothing, settings.auxiliary_weight)
        for penalty in losses:
            loss += penalty.astype(jnp.float32)
        scaled_loss = loss * scale if settings.scaled_loss else loss
        return scaled_loss, (loss, logits_of(outputs), new_other)

    def _passes(self, state: State, pixels: Any, labels: Any) -> tuple[Any, Any, Any, list[Any]]:
        """Run the micro-batches one after the other, and average their losses and gradients."""
        count = self.settings.micro_batches
        size = self.settings.batch // count

        def body(carry: Any, micro_batch: Any) -> Any:
            loss, hits, other, gradients = carry
            micro_loss, micro_hits, other, micro = self._pass(state, other, *micro_batch)
            pairs = zip(gradients, micro, strict=True)
            sums = [total + gradient / count for total, gradient in pairs]
            return (loss + micro_loss / count, hits + micro_hits, other, sums), None

        zeros = [jnp.zeros_like(value) for value in state["trainable"]]
        start = (jnp.float32(0), jnp.int32(0), state["other"], zeros)
        split = (pixels.reshape(count, size, *pixels.shape[1:]), labels.reshape(count, size))
        return lax.scan(body, start, split)[0]

    def _gradient_of(
        self, weights: Any, other: Any, scale: Any, pixels: Any, labels: Any
    ) -> tuple[Any, Any]:
        def minimized_of(weights: Any) -> tuple[Any, Any]:
            trainable = loop.unflatten(weights, self._shapes)
            minimized, (loss, _, _) = self._minimized(trainable, other, scale, pixels, labels)
            return minimized, loss

        (_, loss), gradient = jax.value_and_grad(minimized_of, has_aux=True)(weights)
        return loss, gradient / scale if self.settings.scaled_loss else gradient

    def _see_training_images(self, trainable: Any, other: Any, images: Any, order: Any) -> Any:
        batch = self.settings.micro_batch

        def body(index: Any, other: Any) -> Any:
            indices = lax.dynamic_slice(order, (index * batch,), (batch,))
            pixels = self.settings.images.scale(images[indices])
            return self.model.stateless_call(trainable, other, pixels, training=True)[1]

        return lax.fori_loop(0, len(order) // batch, body, other)

    def _score_split(self, trainable: Any, other: Any, images: Any, labels: Any) -> Any:
        """Return each batch's sum of losses (the last may be smaller) and the correct images."""
        count, batch = int(images.shape[0]), self.settings.eval_batch
        full_batches = count // batch

        def score(pixels: Any, labels: Any) -> Any:
            scaled = self.settings.images.scale(self._shared_out(pixels))
            outputs, _ = self.model.stateless_call(trainable, other, scaled, training=False)
            logits = logits_of(outputs)
            return jnp.sum(cross_entropy(logits, labels, 0.0)), correct(logits, labels)

        def body(hits: Any, one_batch: Any) -> Any:
            loss, batch_hits = score(*one_batch)
            return hits + batch_hits, loss

        shape = (full_batches, batch, *images.shape[1:])
        stop = full_batches * batch
        batches = (images[:stop].reshape(shape), labels[:stop].reshape(full_batches, batch))
        hits, losses = lax.scan(body, jnp.int32(0), batches)
        if count % batch:
            loss, batch_hits = score(images[stop:], labels[stop:])
            losses, hits = jnp.append(losses, loss), hits + batch_hits
        return losses, hits


def _mesh(devices: int) -> Mesh | None:
    """Return this machine's first devices as a one-axis mesh, or None for a single device."""
    if devices == 1:
        return None
    return Mesh(np.array(jax.devices()[:devices]), (REPLICAS,))
