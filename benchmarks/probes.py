"""The cost of each probe in a run: ResNet-20 on 32×32 images, with the probes' default options.

    python benchmarks/probes.py [--norms bn gn] [--batches 16 128] [--rounds 5] [--quick]

One process alternates between training some steps and measuring each probe once. An epoch is that
of CIFAR-10 with a tenth held out: 45,000 training images, 5,000 evaluated. Its time is that of its
steps, at the speed of the steps before and after the probe, plus one evaluation. The slow-down is
the probe's time relative to that of the ``every`` epochs between measurements; for all probes
together it is the sum. Compilation, once per run, is listed separately. Images are random, which
does not affect computation time, except that the sharpness iteration may converge later.
Prints medians over rounds with their range.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from types import SimpleNamespace
from typing import Any

from common import CLASSES, compiled_loop, machine, random_split, shown

TRAIN, VALIDATION = 45_000, 5_000


def prepared(norm: str, batch: int, args: argparse.Namespace) -> tuple[Any, Any, list[Any]]:
    """Return a loop, its data set, and the probes that its network supports."""
    from normbench.config import compose, group_options

    names = sorted(group_options()["probe"])
    config = compose(
        [
            f"arch={args.arch}",
            f"norm={norm}",
            f"batch={batch}",
            f"backend={args.backend}",
            f"probe=[{','.join(names)}]",
        ]
    )
    data = SimpleNamespace(
        train=random_split(args.train, 0),
        validation=random_split(args.validation, 1),
        test=random_split(CLASSES, 2),
        shape=(32, 32, 3),
        classes=CLASSES,
    )
    loop = compiled_loop(config, data)
    loop.rate = 0.01

    from normbench.engine.observer import make_probes
    from normbench.errors import UserError

    probes = []
    for probe in make_probes(config.probe):
        try:
            probe.check(loop.model)
        except UserError as refusal:
            print(f"skipped: {refusal}")
        else:
            probes.append(probe)
    return loop, data, probes


def seconds_a_step(loop: Any, count: int) -> float:
    import numpy as np

    start = time.perf_counter()
    loop.begin_epoch(0)
    loop.train(0, np.full(count, 0.01, np.float32))
    return (time.perf_counter() - start) / count


def seconds_of(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(norm: str, batch: int, args: argparse.Namespace) -> None:
    loop, data, probes = prepared(norm, batch, args)
    seconds_a_step(loop, 2)
    count = max(2, round(args.seconds / seconds_a_step(loop, 2)))
    seconds_of(lambda: loop.evaluate("validation"))
    first = {p.name: seconds_of(lambda p=p: p.measure(loop, data)) for p in probes}
    probe_seconds: dict[str, list[float]] = {probe.name: [] for probe in probes}
    slowdowns: dict[str, list[float]] = {probe.name: [] for probe in probes}
    steps = args.train // batch
    for _ in range(args.rounds):
        evaluation = seconds_of(lambda: loop.evaluate("validation"))
        before = seconds_a_step(loop, count)
        for probe in probes:
            seconds = seconds_of(lambda probe=probe: probe.measure(loop, data))
            after = seconds_a_step(loop, count)
            epoch = steps * (before + after) / 2 + evaluation
            probe_seconds[probe.name].append(seconds)
            slowdowns[probe.name].append(100 * seconds / (probe.every * epoch))
            before = after
    for probe in probes:
        name = probe.name
        print(
            f"| {norm} | {batch} | {name} | {probe.every} | {shown(probe_seconds[name], 2)} | "
            f"{max(first[name] - statistics.median(probe_seconds[name]), 0.0):.1f} | "
            f"{shown(slowdowns[name], 2)} |",
            flush=True,
        )
    totals = [sum(percents) for percents in zip(*slowdowns.values(), strict=True)]
    print(f"| {norm} | {batch} | all together | | | | {shown(totals, 2)} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--norms", nargs="+", default=["bn", "gn"])
    options.add_argument("--batches", type=int, nargs="+", default=[16, 128])
    options.add_argument("--backend", choices=["tensorflow", "jax"], default="tensorflow")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0, help="of training between probes")
    options.add_argument("--quick", action="store_true", help="a trial: ResNet-8, 4,500 images")
    args = options.parse_args()
    args.arch, args.train, args.validation = "resnet20", TRAIN, VALIDATION
    if args.quick:
        args.norms, args.batches = args.norms[:1], args.batches[-1:]
        args.rounds, args.seconds = 1, 0.5
        args.arch, args.train, args.validation = "resnet8", TRAIN // 10, VALIDATION // 10
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    print(
        f"{args.arch}, 32×32, {args.train} images, float32, {args.backend}, {machine()}; "
        f"medians of {args.rounds} (range)\n"
    )
    print(
        "| norm | batch | probe | every (epochs) | a measurement (s) | compiling (s) | "
        "slow-down (%) |"
    )
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for norm in args.norms:
        for batch in args.batches:
            measure(norm, batch, args)


if __name__ == "__main__":
    main()
