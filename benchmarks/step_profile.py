"""Where a training step's time goes on a CPU, and how far each part is from the machine's limits.

    python benchmarks/step_profile.py [--arch resnet20] [--norm gn] [--batch 16] [--steps 20]

TensorFlow's profiler times every operation of some steps of the run's own compiled loop; each is
counted to the layer that it is of. ``ms`` is time on all cores over their number, so that the rows
add up to a step but for what its threads wait and schedule. Two limits of the same machine,
measured in this run, say what a part would take at least:

  arithmetic   a convolution's multiply-adds, forward and to both its inputs, at the rate of a
               matrix product of 2048×2048; Winograd's algorithm takes fewer
  memory       what a part reads and writes at least, once, at the rate of adding up 256 MiB;
               layers whose images stay in the processor's cache can be quicker than that
"""

from __future__ import annotations

import argparse
import bisect
import collections
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import compiled_loop, machine, random_split

IMAGES = 4096
PARTS = ("convolution", "normalization", "activation", "residual addition", "the rest")
XLA = "CpuExecutable::ExecuteAsyncOnStream"
"""One call of what normalizations, and few others, have compiled."""
OTHERS = {
    "_part_updated": "the rest",
    "_prepared": "the rest",
    "_added": "convolution",
    "_tiles": "convolution",
    "_untiled": "convolution",
    "_clipped": "activation",
    "_passed": "activation",
}
"""Parts that others are of, by what is in the name of the module of their kernels.

The optimizer's update; augmentation and scaling; the kernel's gradients of all shards, and
Winograd's transforms; ReLU, with the sum before it, and its gradient.
"""
SHARED = re.compile(r"PartitionedCall(_\d+)?")
"""What normalizations of a shape share a trace of; a gradient's bears no layer's name."""


def part_of(operation: str, kinds: dict[str, str]) -> str:
    """The part that an operation, ``…/layer_1/…:Type``, is counted to."""
    path, _, kind = operation.partition(":")
    if "Conv" in kind:  # also one that an activation was fused with, which it is named after
        return "convolution"
    if any(word.startswith("winograd") for word in path.split("/")):
        return "convolution"
    for word in path.split("/"):
        # A layer is named in a graph by its name, and by a number where it is called again.
        part = kinds.get(word) or kinds.get(word.rpartition("_")[0])
        if part:
            return part
    return "normalization" if any(map(SHARED.fullmatch, path.split("/"))) else "the rest"


def kinds_of(model: Any) -> dict[str, str]:
    """The part that each layer of a network is of, by its name."""
    kinds = {}
    for layer in model.layers:
        kind = type(layer).__name__
        if "Conv" in kind or "Dense" in kind:
            kinds[layer.name] = "convolution"
        elif hasattr(layer, "place"):
            kinds[layer.name] = "normalization"
        elif kind in ("ReLU", "Activation"):
            kinds[layer.name] = "activation"
        elif kind == "Add":
            kinds[layer.name] = "residual addition"
    return kinds


def module_of(event: Any, plane: Any) -> str:
    """The module that a kernel of XLA's is of, named after its function; "" of another event."""
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == "hlo_module":
            return stat.str_value or plane.stat_metadata[stat.ref_value].name
    return ""


def part_of_module(module: str) -> str:
    """The part that what XLA has compiled is counted to."""
    return next((part for name, part in OTHERS.items() if name in module), "normalization")


def profiled(loop: Any, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds of a step, not profiled; and of each part in one that is, over all cores."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    rates = np.zeros(steps, np.float32)
    loop.begin_epoch(0)
    loop.train(0, rates)
    began = time.perf_counter()
    loop.train(0, rates)
    seconds = (time.perf_counter() - began) / steps
    space = xplane_pb2.XSpace()
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        loop.train(0, rates)
        tf.profiler.experimental.stop()
        (file,) = Path(folder).rglob("*.xplane.pb")
        space.ParseFromString(file.read_bytes())
    kinds = kinds_of(loop.model)
    parts: dict[str, float] = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            kernels = sorted((e.offset_ps, module_of(e, plane)) for e in line.events)
            kernels = [each for each in kernels if each[1]]
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                if name == XLA:
                    at = bisect.bisect_left(kernels, (event.offset_ps, ""))
                    within = kernels[at : at + 1]
                    named = bool(within) and within[0][0] < event.offset_ps + event.duration_ps
                    part = part_of_module(within[0][1]) if named else "the rest"
                elif "/body/" in name:
                    part = part_of(name, kinds)
                else:
                    continue
                parts[part] += event.duration_ps / 1e12 / steps
    return seconds, parts


def limits(model: Any, batch: int) -> dict[str, tuple[float, float]]:
    """Multiply-adds and bytes (float32) of each part in a step, at the least."""
    import math

    from normbench.network import layer_costs, parameter_count

    kinds = kinds_of(model)
    costs = {cost.name: cost for cost in layer_costs(model)}
    work = {part: [0.0, 0.0] for part in PARTS}
    for layer in model.layers:
        part = kinds.get(layer.name)
        if part is None:
            continue
        outputs = batch * math.prod(layer.output.shape[1:])
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        read = batch * sum(math.prod(each.shape[1:]) for each in inputs)
        if part == "convolution":
            cost = costs[layer.name]
            work[part][0] += 3 * batch * cost.multiply_adds
            # Forward: input, output; to the input: dy, dx; to the kernel: dy, input.
            work[part][1] += 4 * (3 * read + 3 * outputs + 4 * cost.parameters)
        elif part == "normalization":
            work[part][1] += 4 * (2 * read + 3 * outputs)  # x, y; x, dy, dx
        elif part == "activation":
            work[part][1] += 4 * (2 * read + 3 * outputs)  # x, y; y, dy, dx
        else:
            work[part][1] += 4 * (read + outputs)  # its gradient is handed on as it is
    # Weights and velocity in and out, gradient in.
    work["the rest"][1] += 4 * 5 * parameter_count(model)
    return {part: (each[0], each[1]) for part, each in work.items()}


def rates() -> tuple[float, float]:
    """Multiply-adds and bytes a second of this machine, of all its cores."""
    import tensorflow as tf

    from normbench.engine import threads

    # An operation has the threads of one shard: one for each computes at a time.
    shards = threads.tensorflow_shards()

    def best(function: Any) -> float:
        times = []
        with ThreadPoolExecutor(shards) as pool:
            for _ in range(8):
                began = time.perf_counter()
                list(pool.map(lambda shard: function(shard).numpy(), range(shards)))
                times.append(time.perf_counter() - began)
        return min(times) / shards

    square = tf.ones((2048, 2048))
    long = tf.ones(2**26)
    sums = [tf.Variable(tf.zeros(2**26)) for _ in range(shards)]
    adds = 2048**3 / best(lambda _: tf.matmul(square, square)[0])
    return adds, 3 * 4 * 2**26 / best(lambda shard: sums[shard].assign_add(long).sparse_read([0]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--arch", default="resnet20")
    options.add_argument("--norm", default="gn")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=20)
    given = options.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from normbench.config import compose
    from normbench.engine import threads

    names = [f"{name}={getattr(given, name)}" for name in ("arch", "norm", "batch")]
    split = random_split(max(IMAGES, given.batch * given.steps))
    data = SimpleNamespace(train=split, validation=split, test=split)
    loop = compiled_loop(compose(names), data)
    adds, copied = rates()
    seconds, parts = profiled(loop, given.steps)
    work = limits(loop.model, given.batch)
    cores = threads.cores()
    print(
        f"{machine()}, {given.arch}, {given.norm}, batch {given.batch}, float32: "
        f"{1000 * seconds:.1f} ms a step; {2 * adds / 1e9:.0f} GFLOP/s, {copied / 1e9:.0f} GB/s\n"
    )
    print("| part | ms | share | arithmetic limit, ms | memory limit, ms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    total = sum(parts.values())
    for part in PARTS:
        least_adds, least_bytes = work[part]
        arithmetic = f"{1000 * least_adds / adds:.2f}" if least_adds else "–"
        print(
            f"| {part} | {1000 * parts[part] / cores:.2f} | {parts[part] / total:.0%} "
            f"| {arithmetic} | {1000 * least_bytes / copied:.2f} |"
        )
    print(f"| all of it | {1000 * total / cores:.2f} | 100% | | |")


if __name__ == "__main__":
    main()
