"""What 3×3 convolutions gain by Winograd's algorithm, over TensorFlow's own, and how both round.

    python benchmarks/winograd.py [--rounds 5] [--shapes 8,32,64,64 ...]

Each shape is one shard's on one thread, float32: images, their height and width, channels, filters.
Timed are output and both gradients in one graph, by turns; medians over rounds with their range.
``taken`` says whether normbench's layers convolve such a shard that way. Rounding is the root mean
square difference of the output from float64's, over the output's own, and so that of the kernel's
gradient, after a slash.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from common import machine, shown

SHAPES = (
    *("8,8,64,64", "8,16,64,64", "8,32,64,64", "64,8,64,64", "64,16,64,64", "64,32,64,64"),
    *("8,4,128,128", "8,8,128,128", "8,16,128,128", "64,16,128,128"),
    *("8,4,256,256", "8,8,256,256", "64,8,256,256"),
    *("4,2,512,512", "8,4,512,512", "64,4,512,512"),
    *("8,32,160,160", "8,8,640,640", "8,32,32,32", "64,16,32,32"),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    options.add_argument("--shapes", nargs="+", default=SHAPES, help="images,size,channels,filters")
    given = options.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"{machine()}, of which one is used; medians of {given.rounds} (range)\n")
    print("| shape | TensorFlow, ms | Winograd, ms | gain | rounding of both | taken |")
    print("| --- | ---: | ---: | ---: | ---: | --- |", flush=True)
    for shape in given.shapes:
        images, size, channels, filters = map(int, shape.split(","))
        cells = row(images, size, channels, filters, given.rounds, given.seconds)
        print(f"| {images}×{size}×{size}, {channels} to {filters} | {cells} |", flush=True)


def row(images: int, size: int, channels: int, filters: int, rounds: int, seconds: float) -> str:
    import tensorflow as tf

    from normbench.kernels import winograd
    from normbench.kernels.conv import Conv2D

    x = tf.random.stateless_normal((images, size, size, channels), [0, 1])
    dy = tf.random.stateless_normal((images, size, size, filters), [0, 2])
    kernel = tf.random.stateless_normal((3, 3, channels, filters), [0, 3])

    def ours(x: Any, kernel: Any) -> Any:
        return winograd.convolved(x, winograd.transformed(kernel), "same")

    def theirs(x: Any, kernel: Any) -> Any:
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def timed(step: Callable[..., Any], count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            step(x, kernel, dy)
        return 1000 * (time.perf_counter() - began) / count

    steps = [_step(theirs), _step(ours)]
    errors = [_rounding(step(x, kernel, dy), x, kernel, dy) for step in steps]
    counts = [max(1, round(1000 * seconds / timed(step, 2))) for step in steps]
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (turn % 2, 1 - turn % 2):
            taken[which].append(timed(steps[which], counts[which]))
    gains = [their / our for their, our in zip(*taken, strict=True)]
    chosen = winograd.pays(Conv2D(filters, 3, padding="same"), x)
    return " | ".join(
        [
            *(f"{statistics.median(each):.2f}" for each in taken),
            shown(gains),
            ", ".join(errors),
            "yes" if chosen else "no",
        ]
    )


def _step(convolve: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A graph of the output and the gradients of ``convolve``."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def step(x: Any, kernel: Any, dy: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel)
        return [y, *tape.gradient(y, [x, kernel], dy)]

    return step


def _rounding(found: list[Any], x: Any, kernel: Any, dy: Any) -> str:
    """How far outputs and the kernel's gradient are from float64's, on average."""
    import numpy as np

    x, kernel, dy = (each.numpy().astype(np.float64) for each in (x, kernel, dy))
    size = x.shape[1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros(dy.shape)
    d_kernel = np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + size, j : j + size]
            y += part @ kernel[i, j]
            d_kernel[i, j] = np.tensordot(part, dy, ((0, 1, 2), (0, 1, 2)))
    errors = (
        np.sqrt(np.mean((each.numpy() - wanted) ** 2) / np.mean(wanted**2))
        for each, wanted in ((found[0], y), (found[2], d_kernel))
    )
    return "/".join(f"{error:.0e}" for error in errors)


if __name__ == "__main__":
    main()
