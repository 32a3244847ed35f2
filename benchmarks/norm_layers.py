"""Time of single normalization layers at ResNet shapes, compared with Keras's and PyTorch's own.

    python benchmarks/norm_layers.py [--quick] [--norms bn gn ln in] [--batch 16] [--precision ...]

For each shape, a block of convolution + normalization + ReLU, as in the network, is trained or only
run forward, in one graph. Columns: the time in ms that the normalization adds to the block without
one, for this package's layer, Keras's own and PyTorch's own (if installed), and in parentheses the
time of the block relative to the block without one. Medians over interleaved rounds.
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
Repeat = Callable[[int], None]  # runs a block the given number of times


def tensorflow_block(make: Callable[[], Any] | None, shape: Any, batch: int, train: bool) -> Repeat:
    """Build convolution, the layer that ``make`` creates, and ReLU, looped in one graph."""
    import keras
    import tensorflow as tf

    height, width, channels, kernel = shape
    inputs = keras.Input((height, width, channels), batch_size=batch)
    x = keras.layers.Conv2D(channels, kernel, padding="same", use_bias=make is None)(inputs)
    if make is not None:
        x = make()(x)
    model = keras.Model(inputs, keras.layers.ReLU()(x))
    images = tf.random.stateless_normal((batch, height, width, channels), [0, 1])
    upstream = tf.cast(
        tf.random.stateless_normal((batch, height, width, channels), [0, 2]), model.compute_dtype
    )
    variables = [v.value for v in model.trainable_variables]

    @tf.function(autograph=False)
    def repeat(times: Any) -> Any:
        def body(index: Any, carry: Any) -> Any:
            # The carried value, almost 0, makes each iteration depend on the last, so that no
            # iteration is optimized away.
            x = images + carry
            if not train:
                outputs = model(x, training=True)
                return index + 1, tf.cast(outputs[0, 0, 0, 0], tf.float32) * 1e-30
            with tf.GradientTape() as tape:
                tape.watch(x)
                outputs = model(x, training=True)
            gradients = tape.gradient(outputs, [x, *variables], upstream)
            firsts = [tf.cast(tf.reshape(g, [-1])[0], tf.float32) for g in gradients]
            return index + 1, tf.add_n(firsts) * 1e-30

        return tf.while_loop(lambda i, _: i < times, body, (0, 0.0), parallel_iterations=1)[1]

    return lambda times: repeat(tf.constant(times)).numpy() and None


def torch_block(
    make: Callable[[], Any] | None, shape: Any, batch: int, train: bool, half: bool
) -> Repeat:
    """Build the same block in PyTorch, channels_last, eager."""
    import torch
    from torch import nn

    height, width, channels, kernel = shape
    layers = [nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=make is None)]
    if make is not None:
        layers.append(make())
    block = nn.Sequential(*layers, nn.ReLU()).to(memory_format=torch.channels_last)
    images = torch.randn(batch, channels, height, width).to(memory_format=torch.channels_last)
    upstream = torch.randn_like(images).to(torch.bfloat16 if half else torch.float32)

    def repeat(times: int) -> None:
        for _ in range(times):
            x = images.detach().requires_grad_(train)
            with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, half):
                outputs = block(x)
            if train:
                block.zero_grad(set_to_none=True)
                outputs.backward(upstream.to(outputs.dtype))

    return repeat


def keras_layer(name: str, channels: int) -> Callable[[], Any] | None:
    """Return a function that makes Keras's own layer for a norm, or None if it has none."""
    import keras

    layers = {
        "bn": lambda: keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
        "gn": lambda: keras.layers.GroupNormalization(GROUPS, epsilon=1e-5),
        "ln": lambda: keras.layers.GroupNormalization(1, epsilon=1e-5),
        "in": lambda: keras.layers.GroupNormalization(channels, epsilon=1e-5),
        "rms": lambda: keras.layers.RMSNormalization(),
    }
    return layers.get(name)


def torch_layer(name: str, channels: int) -> Callable[[], Any] | None:
    from torch import nn

    layers = {
        "bn": lambda: nn.BatchNorm2d(channels),
        "gn": lambda: nn.GroupNorm(GROUPS, channels),
        "ln": lambda: nn.GroupNorm(1, channels),
        "in": lambda: nn.InstanceNorm2d(channels, affine=True),
    }
    return layers.get(name)


def our_layer(name: str) -> Callable[[], Any]:
    from normbench.components import options_of, target
    from normbench.config import compose

    spec = compose([f"norm={name}"]).norm
    options = options_of(spec, "weight", "places", "place", "bfn")
    return lambda: target(spec["_target_"])(**options)


def medians(blocks: dict[str, Repeat], rounds: int, seconds: float) -> dict[str, float]:
    """Return the median milliseconds per repetition of each block, measured alternately."""
    times: dict[str, int] = {}
    for name, repeat in blocks.items():
        repeat(2)
        start = time.perf_counter()
        repeat(3)
        times[name] = max(3, int(seconds * 3 / (time.perf_counter() - start)))
    milliseconds: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(rounds):
        for name, repeat in blocks.items():
            start = time.perf_counter()
            repeat(times[name])
            milliseconds[name].append((time.perf_counter() - start) / times[name] * 1e3)
    return {name: statistics.median(values) for name, values in milliseconds.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--norms", nargs="+", default=["bn", "gn", "ln", "in"])
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--precisions", nargs="+", default=["float32", "mixed_bfloat16"])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    options.add_argument("--quick", action="store_true", help="one shape, one round")
    args = options.parse_args()
    shapes = dict(list(SHAPES.items())[:1]) if args.quick else SHAPES
    rounds, seconds = (1, 0.05) if args.quick else (args.rounds, args.seconds)

    from normbench.engine import backend

    try:
        import torch  # noqa: F401

        has_torch = True
    except ModuleNotFoundError:
        has_torch = False
    print(
        f"{machine()}, batch {args.batch}; ms that the "
        f"normalization adds (block relative to the block without), median of {rounds}\n"
    )
    print("| shape | precision | pass | norm | ours | Keras | PyTorch | ours / Keras |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for precision in args.precisions:
        backend.start("tensorflow", precision)
        half = precision == "mixed_bfloat16"
        for title, shape in shapes.items():
            for train in (False, True):
                blocks = {"none": tensorflow_block(None, shape, args.batch, train)}
                if has_torch:
                    blocks["torch none"] = torch_block(None, shape, args.batch, train, half)
                for norm in args.norms:
                    blocks[f"ours {norm}"] = tensorflow_block(
                        our_layer(norm), shape, args.batch, train
                    )
                    if layer := keras_layer(norm, shape[2]):
                        blocks[f"keras {norm}"] = tensorflow_block(layer, shape, args.batch, train)
                    if has_torch and (layer := torch_layer(norm, shape[2])):
                        blocks[f"torch {norm}"] = torch_block(layer, shape, args.batch, train, half)
                times = medians(blocks, rounds, seconds)
                for norm in args.norms:
                    cells = [
                        _cell(times, "ours", norm, "none"),
                        _cell(times, "keras", norm, "none"),
                        _cell(times, "torch", norm, "torch none"),
                    ]
                    ratio = "–"
                    if f"keras {norm}" in times:
                        keras_cost = times[f"keras {norm}"] - times["none"]
                        ratio = f"{(times[f'ours {norm}'] - times['none']) / keras_cost:.2f}"
                    print(
                        f"| {title} | {precision} | {'forward+backward' if train else 'forward'} "
                        f"| {norm} | {' | '.join(cells)} | {ratio} |",
                        flush=True,
                    )


def _cell(times: dict[str, float], library: str, norm: str, base: str) -> str:
    key = f"{library} {norm}"
    if key not in times:
        return "–"
    return f"{times[key] - times[base]:.2f} (×{times[key] / times[base]:.2f})"


if __name__ == "__main__":
    main()
