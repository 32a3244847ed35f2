"""The loop on TensorFlow: an epoch's steps as one graph, with no Python between them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from normbench.engine import loop, threads
from normbench.engine.flat_weights import LARGE, WeightVectors
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
from normbench.engine.shards import Shards, forward
from normbench.kernels.compile import has_gpu
from normbench.norms.precise_batch import recomputed_layers


class TensorFlowLoop(Loop):
    """A :class:`Loop` that keeps its state in TensorFlow variables."""

    backend = "tensorflow"

    def __init__(self, model: keras.Model, dataset: Any, settings: LoopSettings) -> None:
        self.model = model
        self.settings = settings
        self.stream = loop.stream_of(dataset, settings, tf.constant)
        self._splits = {} if self.stream else loop.splits_as(dataset, tf.constant)
        self._count = len(dataset.train.labels)
        self._shards = threads.tensorflow_shards()
        self._variables = list(model.trainable_variables)
        self._shapes = [tuple(v.shape) for v in self._variables]
        self._vectors = WeightVectors(self._shapes, None if has_gpu() else LARGE)
        decayed = self._vectors.split(loop.decay_mask(self._variables))
        # A scalar is enough if all weights of a vector are decayed, or none.
        self._decayed = [tf.constant(mask if np.ptp(mask) else mask[0]) for mask in decayed]
        self._slots = [
            [
                tf.Variable(tf.zeros(len(mask)), trainable=False)
                for _ in range(settings.optimizer.slots)
            ]
            for mask in decayed
        ]
        self._step = tf.Variable(0, dtype=tf.int32, trainable=False)
        self._scale = tf.Variable(2.0**15, dtype=tf.float32, trainable=False)
        self._finite_steps = tf.Variable(0, dtype=tf.int32, trainable=False)
        # The order of the images on the device, and their random words.
        image_count = self.stream.images if self.stream else self._count
        self._order = tf.Variable(tf.range(image_count), trainable=False)
        self._words = [
            tf.Variable(tf.zeros(image_count, tf.uint32), trainable=False) for _ in range(2)
        ]
        number, numbers = tf.TensorSpec([], tf.int32), tf.TensorSpec([None], tf.float32)
        # The seed is an argument, so that the next run's seed needs no new trace.
        seed = tf.TensorSpec([], tf.uint32)
        self._draw = tf.function(self._draw_epoch, [number, seed], autograph=False)
        # The number of steps is unspecified, so that a different number needs no new trace.
        shape = dataset.test.images.shape[1:]
        chunk = [
            tf.TensorSpec([image_count, *shape], tf.uint8),
            tf.TensorSpec([image_count], tf.int32),
        ]
        data = chunk if self.stream else []
        self._run = tf.function(self._run_steps, [number, numbers, *data], autograph=False)
        # The number of images is unspecified: one trace serves both splits and their last batches.
        any_images = tf.TensorSpec([None, *shape], tf.uint8)
        any_labels = tf.TensorSpec([None], tf.int32)
        image_specs = [any_images] if self.stream else []
        self._recompute = tf.function(self._see_training_images, image_specs, autograph=False)
        self._score = tf.function(self._score_split, [any_images, any_labels], autograph=False)
        self._gradient = tf.function(self._gradient_of, autograph=False)
        self._inspections: dict[tuple[int, bool, int], tuple[Any, Any]] = {}
        self._is_compiled = False

    def trace(self) -> None:
        self._run.get_concrete_function()
        self._score.get_concrete_function()

    def compile(self) -> None:
        self.begin_epoch(0)
        if self._is_compiled:
            return
        # XLA compiles a function at its first call. Take a step here and undo it, so that compiling
        # does not count as training time.
        state = self.state()
        self.train(0, np.zeros(1, np.float32))
        self.load(state)
        self._is_compiled = True

    def begin_epoch(self, epoch: int) -> None:
        tensors = self._draw(
            tf.constant(epoch, tf.int32), tf.constant(self.settings.seed, tf.uint32)
        )
        if self.stream:
            order, *words = (values.numpy() for values in tensors)
            self.stream.begin_epoch(order, tuple(words))

    def train(self, first: int, rates: np.ndarray) -> Steps:
        if self.stream is None:
            return self._take_steps(first, rates)
        steps = []
        for chunk, start, chunk_rates in self.stream.training(first, rates):
            for variable, word in zip(self._words, chunk.words, strict=True):
                variable.assign(word)
            steps.append(self._take_steps(start, chunk_rates, chunk.images, chunk.labels))
        return Steps.empty().followed_by(*steps)

    def _take_steps(self, first: int, rates: np.ndarray, *data: Any) -> Steps:
        """Take steps on ``data``, images and labels, or on all of the training split."""
        history = self._run(tf.constant(first, tf.int32), tf.constant(rates), *data)
        return Steps(*(values.numpy() for values in history))

    def recompute(self) -> None:
        layers = recomputed_layers(self.model)
        if not layers:
            return
        for layer in layers:
            layer.begin()
        if self.stream is None:
            self._recompute()
        else:
            with closing(self.stream.population(self.settings.micro_batch)) as chunks:
                for images in chunks:
                    self._recompute(images)
        for layer in layers:
            layer.finish()

    def evaluate(self, split: str) -> tuple[float, float]:
        if self.stream is None:
            return self._evaluated([self._splits[split]])
        with closing(self.stream.evaluation(split)) as chunks:
            return self._evaluated(chunks)

    def _evaluated(self, chunks: Iterable[tuple[Any, Any]]) -> tuple[float, float]:
        """Return mean cross-entropy and accuracy over chunks of images and labels."""
        losses, hits, count = [], 0, 0
        for images, labels in chunks:
            batch_losses, batch_hits = self._score(images, labels)
            losses.append(batch_losses.numpy())
            hits += int(batch_hits)
            count += int(labels.shape[0])
        return float(np.sum(np.concatenate(losses), dtype=np.float64)) / count, hits / count

    def inspect(
        self, sub_model: Any, pixels: np.ndarray, *, batch_statistics: bool = False
    ) -> list[np.ndarray]:
        shards = min(self._shards, len(pixels))
        key = (id(sub_model), batch_statistics, shards)
        if key not in self._inspections:
            images = tf.TensorSpec([None, *pixels.shape[1:]], tf.uint8)
            function = tf.function(
                lambda pixels: self._inspect(sub_model, pixels, batch_statistics, shards),
                [images],
                autograph=False,
            )
            # Store the sub-model, too, so that no other object can get its id.
            self._inspections[key] = (sub_model, function)
        outputs = self._inspections[key][1](tf.constant(pixels))
        return [output.numpy() for output in outputs]

    def weights(self) -> np.ndarray:
        return np.concatenate([v.numpy().ravel() for v in self._variables]).astype(np.float32)

    def gradient_at(
        self, pixels: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        loss, gradient = self._gradient(
            tf.constant(weights, tf.float32), tf.constant(pixels), tf.constant(labels, tf.int32)
        )
        return float(loss), gradient.numpy()

    def state(self) -> dict[str, np.ndarray]:
        state = {name: value.numpy() for name, value in self._named_state().items()}
        for index, slot in enumerate(zip(*self._slots, strict=True)):
            vectors = [variable.numpy() for variable in slot]
            state[f"optimizer/slot{index}"] = self._vectors.join(vectors)
        return state

    def load(self, state: dict[str, np.ndarray]) -> None:
        for name, variable in self._named_state().items():
            variable.assign(state[name])
        for index, slot in enumerate(zip(*self._slots, strict=True)):
            vectors = self._vectors.split(state[f"optimizer/slot{index}"])
            for variable, vector in zip(slot, vectors, strict=True):
                variable.assign(vector)

    def devices(self) -> list[str]:
        gpus = tf.config.list_logical_devices("GPU")
        return [device.name for device in gpus or tf.config.list_logical_devices("CPU")]

    def _named_state(self) -> dict[str, Any]:
        """Return the variables of the state by name, except the optimizer's slots."""
        variables = self.model.variables
        names = loop.variable_names(variables)
        tensors = {name: v.value for name, v in zip(names, variables, strict=True)}
        tensors["optimizer/step"] = self._step
        if self.settings.scaled_loss:
            tensors["loss_scale/factor"] = self._scale
            tensors["loss_scale/finite_steps"] = self._finite_steps
        return tensors

    def _draw_epoch(self, epoch: Any, seed: Any) -> list[Any]:
        """Draw the order and random words of an epoch; return them if the images are streamed."""
        order = epoch_order(seed, epoch, self._count)
        words = epoch_words(seed, AUGMENT, epoch, self._count)
        if self.stream:
            return [order, *words]
        for variable, value in zip((self._order, *self._words), (order, *words), strict=True):
            variable.assign(value)
        return []

    def _run_steps(self, first: Any, rates: Any, *data: Any) -> tuple[Any, Any, Any]:
        count = tf.shape(rates)[0]
        histories = tuple(tf.TensorArray(dtype, size=count) for dtype in Steps.DTYPES)

        def body(index: Any, histories: Any) -> Any:
            values = self._one_step(first + index, rates[index], *data)
            arrays = (h.write(index, v) for h, v in zip(histories, values, strict=True))
            return index + 1, tuple(arrays)

        _, histories = tf.while_loop(
            lambda index, _: index < count,
            body,
            (tf.constant(0), histories),
            parallel_iterations=1,
        )
        return tuple(history.stack() for history in histories)

    def _one_step(self, position: Any, rate: Any, *data: Any) -> tuple[Any, Any, Any]:
        settings, batch = self.settings, self.settings.batch
        images, labels = data or self._splits["train"]
        indices = tf.slice(self._order, [position * batch], [batch])
        words = [tf.slice(word, [position * batch], [batch]) for word in self._words]
        scaled = self._prepare(images, indices, words)
        labels = tf.gather(labels, indices)
        if settings.micro_batches == 1:
            loss, hits, gradients = self._pass(scaled, labels)
        else:
            loss, hits, gradients = self._passes(scaled.joined(), labels)
        gradients = loop.clip_gradients(
            settings, self._variables, self._variables, gradients, self._scale
        )
        weights, slots, scale, norm = loop.update_weights(
            settings,
            self._vectors.vectors(self._variables),
            self._vectors.vectors(gradients),
            [[slot.read_value() for slot in slots] for slots in self._slots],
            rate,
            self._step.read_value(),
            self._decayed,
            (self._scale.read_value(), self._finite_steps.read_value()),
        )
        values = loop.apply_constraints(self._variables, self._vectors.tensors(weights))
        for variable, value in zip(self._variables, values, strict=True):
            variable.value.assign(value)
        for variables, new_values in zip(self._slots, slots, strict=True):
            for variable, value in zip(variables, new_values, strict=True):
                variable.assign(value)
        self._step.assign_add(1)
        if settings.scaled_loss:
            self._scale.assign(scale[0])
            self._finite_steps.assign(scale[1])
        return loss, hits, norm

    def _prepare(self, images: Any, indices: Any, words: Any) -> Shards:
        """Return chosen images, augmented and scaled: in shards, or unsplit for micro-batches."""
        count = self._shards if self.settings.micro_batches == 1 else 1
        shards = [Shards.of(tensor, count).parts for tensor in (indices, *words)]
        prepare = self.settings.images.prepare
        return Shards(
            [
                prepare(tf.gather(images, order), (word0, word1))
                for order, word0, word1 in zip(*shards, strict=True)
            ]
        )

    def _pass(self, scaled: Any, labels: Any) -> tuple[Any, Any, list[Any]]:
        """Return loss, number of correct images, and gradients of the scaled loss of one pass."""
        settings = self.settings
        with tf.GradientTape() as tape:
            outputs = self._forward(scaled)
            loss = self._loss(outputs, labels)
            minimized = loss * self._scale if settings.scaled_loss else loss
        gradients = tape.gradient(
            minimized,
            [v.value for v in self._variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return loss, correct(logits_of(outputs), labels), gradients

    def _loss(self, outputs: Any, labels: Any) -> Any:
        loss = objective(outputs, labels, self.settings.smoothing, self.settings.auxiliary_weight)
        if self.model.losses:
            loss += tf.add_n([tf.cast(penalty, tf.float32) for penalty in self.model.losses])
        return loss

    def _forward(self, scaled: Any) -> Any:
        return forward(self.model, scaled, self._shards, training=True)

    def _passes(self, scaled: Any, labels: Any) -> tuple[Any, Any, list[Any]]:
        """Run the micro-batches one after the other, and average their losses and gradients."""
        count, size = self.settings.micro_batches, self.settings.micro_batch

        def body(index: Any, loss: Any, hits: Any, gradients: Any) -> Any:
            start = index * size
            shape = scaled.shape[1:]
            micro_loss, micro_hits, micro_gradients = self._pass(
                tf.slice(scaled, [start, *[0] * len(shape)], [size, *shape]),
                tf.slice(labels, [start], [size]),
            )
            pairs = zip(gradients, micro_gradients, strict=True)
            sums = [total + gradient / count for total, gradient in pairs]
            return index + 1, loss + micro_loss / count, hits + micro_hits, sums

        zeros = [tf.zeros(v.shape, v.value.dtype) for v in self._variables]
        start = (tf.constant(0), tf.constant(0.0), tf.constant(0), zeros)
        # One at a time, because memory may not fit the activations of several.
        end = tf.while_loop(lambda index, *_: index < count, body, start, parallel_iterations=1)
        return end[1:]

    def _gradient_of(self, weights: Any, pixels: Any, labels: Any) -> tuple[Any, Any]:
        settings = self.settings
        variables = [*self._variables, *self.model.non_trainable_variables]
        other = [v.value.read_value() for v in self.model.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            values = [*loop.unflatten(weights, self._shapes), *other]
            # Within the scope, layers read these values, and assignments do not change variables.
            mapping = list(zip(variables, values, strict=True))
            with keras.StatelessScope(mapping, collect_losses=True):
                loss = self._loss(self._forward(settings.images.scale(pixels)), labels)
            minimized = loss * self._scale if settings.scaled_loss else loss
        gradient = tape.gradient(
            minimized, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return loss, gradient / self._scale if settings.scaled_loss else gradient

    def _see_training_images(self, *chunk: Any) -> None:
        """Run a chunk's images in their order, or all training images in the epoch's order."""
        batch = self.settings.micro_batch
        if chunk:
            images, count = chunk[0], tf.shape(chunk[0])[0]
            order = tf.range(count)
        else:
            images, count, order = self._splits["train"][0], self._count, self._order

        def body(index: Any) -> Any:
            indices = tf.slice(order, [index * batch], [batch])
            self._forward(self.settings.images.scale(tf.gather(images, indices)))
            return (index + 1,)

        tf.while_loop(lambda index: index < count // batch, body, (0,), parallel_iterations=1)

    def _inspect(
        self, sub_model: Any, pixels: Any, batch_statistics: bool, shards: int
    ) -> list[Any]:
        scaled = self.settings.images.scale(pixels)
        if not batch_statistics:
            return loop.as_list(forward(sub_model, scaled, shards, training=False))
        # Layers update their moving averages as they normalize, so restore them in the same call.
        variables = sub_model.non_trainable_variables
        values = [variable.value.read_value() for variable in variables]
        with loop.without_dropout(sub_model):
            outputs = loop.as_list(forward(sub_model, scaled, shards, training=True))
        for variable, value in zip(variables, values, strict=True):
            variable.value.assign(value)
        return outputs

    def _score_split(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Return each batch's sum of losses (the last may be smaller) and the correct images."""
        count, batch = tf.shape(labels)[0], self.settings.eval_batch

        def body(start: Any, losses: Any, hits: Any) -> Any:
            stop = tf.minimum(start + batch, count)
            outputs = self.model(self.settings.images.scale(images[start:stop]), training=False)
            logits = logits_of(outputs)
            batch_labels = labels[start:stop]
            loss = tf.reduce_sum(cross_entropy(logits, batch_labels, 0.0))
            return stop, losses.write(start // batch, loss), hits + correct(logits, batch_labels)

        losses = tf.TensorArray(tf.float32, size=(count + batch - 1) // batch)
        _, losses, hits = tf.while_loop(
            lambda start, *_: start < count,
            body,
            (0, losses, 0),
            parallel_iterations=self._shards,  # batches are independent
        )
        return losses.stack(), hits
