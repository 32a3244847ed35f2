"""Compare normbench's training speed with Keras's ``fit`` and PyTorch's, on 32×32 images.

    python benchmarks/train_step.py [--arch resnet20] [--batches 16 128] [--norms none bn gn gn_ws]

Each contender has its own process, which is idle while another is measured. With --alone, for cells
whose four contenders do not fit in memory together, each starts when the previous one has ended:
  engine          normbench: epoch loop, augmentation and optimizer in one compiled function
  keras           the same network with Keras's own layers, trained by ``fit`` from arrays
  torch           the same in PyTorch, eager, channels_last (if installed)
  torch.compile   the same, compiled
Keras and PyTorch get images already scaled and not augmented, which is in their favor.
Prints images/s, medians over interleaved rounds with their range, and the engine's ratios to
``keras`` and to the faster of the two PyTorch contenders.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import CLASSES, compiled_loop, machine, random_split, shown

ARCHS = ("resnet20", "resnet50", "mobilenet_v2")
IMAGES = 1024
IDLE = 1.0
"""Idle seconds after which a contender is warmed up again."""
REST = "rest\n"
Epoch = Callable[[int], None]  # trains on about the given number of images


def engine(arch: str, norm: str, batch: int, precision: str) -> Epoch:
    from types import SimpleNamespace

    import numpy as np

    from normbench.config import compose

    split = random_split(IMAGES)
    data = SimpleNamespace(train=split, validation=split, test=split)
    config = compose([f"arch={arch}", f"norm={norm}", f"batch={batch}", f"precision={precision}"])
    loop = compiled_loop(config, data)

    def epoch(count: int) -> None:
        while count > 0:
            steps = min(max(1, count // batch), IMAGES // batch)
            loop.begin_epoch(0)
            loop.train(0, np.full(steps, 0.01, np.float32))
            count -= steps * batch

    return epoch


def keras_fit(arch: str, norm: str, batch: int, precision: str) -> Epoch:
    from normbench.engine.backend import prepare

    prepare(os.environ)  # oneDNN for the peer, too

    import keras
    import numpy as np

    keras.config.set_dtype_policy(precision)
    model = keras_network(arch, norm)
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    split = random_split(IMAGES)
    scaled = ((split.images / 255 - 0.5) / 0.25).astype(np.float32)

    def epoch(count: int) -> None:
        while count > 0:
            images = min(max(batch, count - count % batch), IMAGES)
            model.fit(scaled[:images], split.labels[:images], batch_size=batch, verbose=0)
            count -= images

    return epoch


def keras_network(arch: str, norm: str) -> Any:
    """Build the config's network from Keras's own layers only (with WS as commonly posted)."""
    from keras import layers, ops

    from normbench.components import options_of, target
    from normbench.config import compose
    from normbench.norms.norm import Norm

    class StandardizedConv2D(layers.Conv2D):
        def call(self, inputs):
            mean, variance = ops.moments(self.kernel, axes=(0, 1, 2), keepdims=True)
            return self.convolution_op(inputs, (self.kernel - mean) * ops.rsqrt(variance + 1e-5))

    class PlainNorm(Norm):
        def conv(self, filters, kernel_size, *, place, name, strides=1, **ignored):
            kind = StandardizedConv2D if norm.endswith("_ws") else layers.Conv2D
            bias = place is None or not self.normalizes(place)
            return kind(
                filters,
                kernel_size,
                strides=strides,
                padding="same",
                use_bias=bias,
                kernel_initializer="he_normal",
                name=name,
            )

    kinds = {
        "none": None,
        "bn": lambda name: layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name),
        "gn": lambda name: layers.GroupNormalization(8, epsilon=1e-5, name=name),
    }
    config = compose([f"arch={arch}"])
    build = target(config.arch["_target_"])
    plain = PlainNorm(kinds[norm.removesuffix("_ws")])
    return build(plain, (32, 32, 3), CLASSES, **options_of(config.arch))


def torch_eager(arch: str, norm: str, batch: int, precision: str, compiled: bool = False) -> Epoch:
    import numpy as np
    import torch
    from torch.nn import functional as F
    from torch_networks import NETWORKS

    model = NETWORKS[arch](norm, CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    forward = torch.compile(model) if compiled else model
    split = random_split(IMAGES)
    images = torch.tensor(
        ((split.images / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
    )
    images = images.to(memory_format=torch.channels_last)
    targets = torch.tensor(split.labels.astype(np.int64))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed_bfloat16")

    def epoch(count: int) -> None:
        while count > 0:
            indices = torch.randint(0, IMAGES, (batch,))
            with autocast:
                loss = F.cross_entropy(forward(images[indices]), targets[indices])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            count -= batch

    return epoch


def torch_compiled(arch: str, norm: str, batch: int, precision: str) -> Epoch:
    return torch_eager(arch, norm, batch, precision, compiled=True)


CONTENDERS = {
    "keras": keras_fit,
    "engine": engine,
    "torch": torch_eager,
    "torch.compile": torch_compiled,
}


def serve(name: str, arch: str, norm: str, batch: int, precision: str) -> None:
    """Print ``ready``, then answer each line of standard input.

    A line with a number of seconds is answered with the images/s over about that time, and ``rest``
    by releasing unused memory to the system.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # keep output of libraries out of the answers
    epoch = CONTENDERS[name](arch, norm, batch, precision)
    epoch(batch)
    images = rate(epoch, batch)
    if images > batch:  # more than one step per second
        images = rate(epoch, 4 * batch)
    print("ready", file=answers)
    is_new, end = True, time.perf_counter()
    for line in sys.stdin:
        if line == REST:
            give_memory_back()
            print("rests", file=answers)
            continue
        steps = max(1, round(images * float(line) / batch))
        if time.perf_counter() - end > IDLE:
            epoch(batch)  # warm the caches and the allocator
            is_new = False
        # A single step has already been measured at the start.
        answer = images if is_new and steps == 1 else rate(epoch, steps * batch)
        is_new, end = False, time.perf_counter()
        print(answer, file=answers)


def rate(epoch: Epoch, count: int) -> float:
    """Train on ``count`` images; return images/s."""
    start = time.perf_counter()
    epoch(count)
    return count / (time.perf_counter() - start)


def give_memory_back() -> None:
    """Release memory that the allocator caches, so that the next contender can use it."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


class Contender:
    """A process that serves one contender of a cell; the constructor waits until it is ready.

    Args:
        name: A key of ``CONTENDERS``.
        *cell: Arch, norm, batch and precision.
        checkout: Folder with a commit's files, whose own copy of this script and of normbench is
            used; by default this script and the normbench of this process.
    """

    def __init__(self, name: str, *cell: str, checkout: Path | None = None) -> None:
        self.name = name
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        script = Path(__file__)
        if checkout is not None:
            environment["PYTHONPATH"] = str(checkout)
            script = checkout / "benchmarks" / script.name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process dies
        self.process = subprocess.Popen(
            [sys.executable, script, "--serve", name, *cell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self._answer()

    def rate(self, seconds: float) -> float:
        """Measure for about ``seconds``; return images/s."""
        return float(self._ask(f"{seconds}\n"))

    def rest(self) -> None:
        """Release unused memory to the other contenders."""
        self._ask(REST)

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # _answer reports that the process died
            self.process.stdin.write(line)
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().strip()
        if not answer:
            self.errors.seek(0)
            reason = self.errors.read().strip().rpartition("\n")[2]
            raise SystemExit(f"{self.name} died: {reason}")
        return answer

    def close(self) -> None:
        """End the process, which frees everything its library has cached for the cell."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measured(
    names: list[str], cell: tuple[str, ...], rounds: int, seconds: float, alone: bool
) -> dict[str, list[float]]:
    """Measure the contenders of a cell alternately; return the images/s of each by round."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    contenders: dict[str, Contender] = {}
    for _ in range(rounds):
        for name in names:
            contender = contenders.pop(name, None) or Contender(name, *cell)
            rates[name].append(contender.rate(seconds))
            if alone:
                contender.close()
            else:
                contender.rest()
                contenders[name] = contender
    for contender in contenders.values():
        contender.close()
    return rates


def add_options(options: argparse.ArgumentParser, archs: Sequence[str]) -> None:
    """Add the options that choose the cells and the amount of measurement."""
    options.add_argument("--arch", choices=archs, default="resnet20", metavar="ARCH")
    options.add_argument("--batches", type=int, nargs="+", default=[16, 128])
    options.add_argument("--norms", nargs="+", default=["none", "bn", "gn", "gn_ws"])
    options.add_argument("--precision", default="float32")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0, help="of each measurement")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options, ARCHS)
    options.add_argument("--alone", action="store_true", help="one contender in memory at a time")
    options.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve:
        name, arch, norm, batch, precision = args.serve
        serve(name, arch, norm, int(batch), precision)
        return
    has_torch = importlib.util.find_spec("torch") is not None
    names = [name for name in CONTENDERS if has_torch or not name.startswith("torch")]
    print(f"{machine()}, {args.precision}; images/s, median of {args.rounds} (range)\n")
    columns = ["Keras `fit`", "engine", "over `fit`"]
    columns += ["PyTorch", "`torch.compile`", "over PyTorch"] if has_torch else []
    print("| network | batch | norm | " + " | ".join(columns) + " |")
    print("| --- | ---: | --- |" + " ---: |" * len(columns), flush=True)
    for batch in args.batches:
        for norm in args.norms:
            cell = (args.arch, norm, str(batch), args.precision)
            rates = measured(names, cell, args.rounds, args.seconds, args.alone)
            print(f"| {args.arch} | {batch} | {norm} | {' | '.join(row(rates))} |", flush=True)


def row(rates: dict[str, list[float]]) -> list[str]:
    """Return a row's cells: images/s of each contender, and the engine's ratios to the others."""
    median = {name: statistics.median(values) for name, values in rates.items()}
    cells = [shown(rates["keras"], 0), shown(rates["engine"], 0)]
    cells.append(f"{median['engine'] / median['keras']:.2f}")
    if "torch" in rates:
        best_torch = max(median["torch"], median["torch.compile"])
        cells += [shown(rates["torch"], 0), shown(rates["torch.compile"], 0)]
        cells.append(f"{median['engine'] / best_torch:.2f}")
    return cells


if __name__ == "__main__":
    main()
