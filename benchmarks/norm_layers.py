"""Time of one normalization at the shapes of ResNet-20 and ResNet-50, beside its peers, in one run.

    python benchmarks/norm_layers.py [--quick] [--norms bn gn ln in] [--batch 16] [--precision ...]

For each shape the piece is convolution + normalization + ReLU as the networks have it, trained
or only run forward in one graph. Columns: the time that the normalization adds to the piece
without one, in ms, for this package's layer, Keras's own and PyTorch's own (where installed), and
the whole piece as a ratio to the piece with no normalization. Medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import machine

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHAPES = {  # height, width, channels, kernel
    "ResNet-20 stage 1": (32, 32, 16, 3),
    "ResNet-20 stage 3": (8, 8, 64, 3),
    "ResNet-50 stage 1": (56, 56, 64, 1),
    "ResNet-50 stage 3": (14, 14, 256, 3),
}
GROUPS = 8
Timed = Callable[[int], None]  # repeats the piece so many times


def tensorflow_piece(make: Callable[[], Any] | None, shape: Any, batch: int, train: bool) -> Timed:
    """Convolution, the layer that ``make`` makes, ReLU; looped in one graph."""
    import keras
    import tensorflow as tf

    height, width, channels, kernel = shape
    inputs = keras.Input((height, width, channels), batch_size=batch)
    x = keras.layers.Conv2D(channels, kernel, padding="same", use_bias=make is None)(inputs)
    if make is not None:
        x = make()(x)
    model = keras.Model(inputs, keras.layers.ReLU()(x))
    given = tf.random.stateless_normal((batch, height, width, channels), [0, 1])
    upstream = tf.cast(
        tf.random.stateless_normal((batch, height, width, channels), [0, 2]), model.compute_dtype
    )
    variables = [v.value for v in model.trainable_variables]

    @tf.function(autograph=False)
    def repeat(times: Any) -> Any:
        def body(index: Any, carried: Any) -> Any:
            # What is carried, next to nothing, makes each turn need the last: none is left out.
            images = given + carried
            if not train:
                outputs = model(images, training=True)
                return index + 1, tf.cast(outputs[0, 0, 0, 0], tf.float32) * 1e-30
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = model(images, training=True)
            gradients = tape.gradient(outputs, [images, *variables], upstream)
            parts = [tf.cast(tf.reshape(g, [-1])[0], tf.float32) for g in gradients]
            return index + 1, tf.add_n(parts) * 1e-30

        return tf.while_loop(lambda i, _: i < times, body, (0, 0.0), parallel_iterations=1)[1]

    return lambda times: repeat(tf.constant(times)).numpy() and None


def torch_piece(
    make: Callable[[], Any] | None, shape: Any, batch: int, train: bool, half: bool
) -> Timed:
    """The same in PyTorch, channels_last, eager."""
    import torch
    from torch import nn

    height, width, channels, kernel = shape
    parts = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=make is None)]
    if make is not None:
        parts.append(make())
    piece = nn.Sequential(*parts, nn.ReLU()).to(memory_format=torch.channels_last)
    given = torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last)
    upstream = torch.randn_like(given).to(torch.bfloat16 if half else torch.float32)

    def repeat(times: int) -> None:
        for _ in range(times):
            images = given.detach().requires_grad_(train)
            with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, half):
                outputs = piece(images)
            if train:
                piece.zero_grad(set_to_none=True)
                outputs.backward(upstream.to(outputs.dtype))

    return repeat


def keras_layer(name: str, channels: int) -> Callable[[], Any] | None:
    """Keras's own layer for a normalization, or None where it has none."""
    import keras

    own = {
        "bn": lambda: keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
        "gn": lambda: keras.layers.GroupNormalization(GROUPS, epsilon=1e-5),
        "ln": lambda: keras.layers.GroupNormalization(1, epsilon=1e-5),
        "in": lambda: keras.layers.GroupNormalization(channels, epsilon=1e-5),
        "rms": lambda: keras.layers.RMSNormalization(),
    }
    return own.get(name)


def torch_layer(name: str, channels: int) -> Callable[[], Any] | None:
    from torch import nn

    own = {
        "bn": lambda: nn.BatchNorm2d(channels),
        "gn": lambda: nn.GroupNorm(GROUPS, channels),
        "ln": lambda: nn.GroupNorm(1, channels),
        "in": lambda: nn.InstanceNorm2d(channels, affine=True),
    }
    return own.get(name)


def our_layer(name: str) -> Callable[[], Any]:
    from normbench.components import options_of, target
    from normbench.config import compose

    spec = compose([f"norm={name}"]).norm
    options = options_of(spec, "weight", "places", "place", "bfn")
    return lambda: target(spec["_target_"])(**options)


def medians(pieces: dict[str, Timed], rounds: int, seconds: float) -> dict[str, float]:
    """Milliseconds a turn of each piece, measured in turns."""
    times: dict[str, int] = {}
    for name, piece in pieces.items():
        piece(2)
        began = time.perf_counter()
        piece(3)
        times[name] = max(3, int(seconds * 3 / (time.perf_counter() - began)))
    taken: dict[str, list[float]] = {name: [] for name in pieces}
    for _ in range(rounds):
        for name, piece in pieces.items():
            began = time.perf_counter()
            piece(times[name])
            taken[name].append((time.perf_counter() - began) / times[name] * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--norms", nargs="+", default=["bn", "gn", "ln", "in"])
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--precisions", nargs="+", default=["float32", "mixed_bfloat16"])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    options.add_argument("--quick", action="store_true", help="one shape, one round")
    given = options.parse_args()
    shapes = dict(list(SHAPES.items())[:1]) if given.quick else SHAPES
    rounds, seconds = (1, 0.05) if given.quick else (given.rounds, given.seconds)

    from normbench.engine import backend

    try:
        import torch  # noqa: F401

        has_torch = True
    except ModuleNotFoundError:
        has_torch = False
    print(
        f"{machine()}, batch {given.batch}; ms that the "
        f"normalization adds (whole piece over the piece without), median of {rounds}\n"
    )
    print("| shape | precision | pass | norm | ours | Keras | PyTorch | ours / Keras |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for precision in given.precisions:
        backend.start("tensorflow", precision)
        half = precision == "mixed_bfloat16"
        for title, shape in shapes.items():
            for train in (False, True):
                pieces = {"none": tensorflow_piece(None, shape, given.batch, train)}
                if has_torch:
                    pieces["torch none"] = torch_piece(None, shape, given.batch, train, half)
                for norm in given.norms:
                    pieces[f"ours {norm}"] = tensorflow_piece(
                        our_layer(norm), shape, given.batch, train
                    )
                    if own := keras_layer(norm, shape[2]):
                        pieces[f"keras {norm}"] = tensorflow_piece(own, shape, given.batch, train)
                    if has_torch and (own := torch_layer(norm, shape[2])):
                        pieces[f"torch {norm}"] = torch_piece(own, shape, given.batch, train, half)
                took = medians(pieces, rounds, seconds)
                for norm in given.norms:
                    cells = [
                        _cell(took, "ours", norm, "none"),
                        _cell(took, "keras", norm, "none"),
                        _cell(took, "torch", norm, "torch none"),
                    ]
                    ratio = "–"
                    if f"keras {norm}" in took:
                        added = took[f"keras {norm}"] - took["none"]
                        ratio = f"{(took[f'ours {norm}'] - took['none']) / added:.2f}"
                    print(
                        f"| {title} | {precision} | {'forward+backward' if train else 'forward'} "
                        f"| {norm} | {' | '.join(cells)} | {ratio} |",
                        flush=True,
                    )


def _cell(took: dict[str, float], whose: str, norm: str, base: str) -> str:
    key = f"{whose} {norm}"
    if key not in took:
        return "–"
    return f"{took[key] - took[base]:.2f} (×{took[key] / took[base]:.2f})"


if __name__ == "__main__":
    main()
