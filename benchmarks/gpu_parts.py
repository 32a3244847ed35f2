"""The parts of ``gpu.py``: what each measures, and the tables it writes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from common import shown
from gpu_bench import EAGER, Bench, Cell, Figure, Lost, Report, Study

SIDE_BY_SIDE = 128
"""Largest batch at which networks of all norms are held in GPU memory at once."""
STUDY_HOURS = 3.0


def throughput(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    names = bench.contenders
    report.say(f"images/s, medians of {settings.rounds} (range); × is the engine over it.\n")
    peers = [name for name in names if name != "engine"]
    report.table("network", "norm", "batch", "engine", *peers, numbers_from=2)
    every: dict[tuple[Cell, str], Figure] = {}
    skipped: list[Cell] = []
    longest: dict[str, float] = {}
    for batch in settings.batches:
        for arch in settings.archs:
            cells = [Cell(arch, norm, batch) for norm in settings.norms]
            for some in [cells] if batch <= SIDE_BY_SIDE else [[cell] for cell in cells]:
                began = time.monotonic()
                if began + longest.get(arch, 0.0) > until:
                    skipped += some
                    continue
                figures = bench.stage(some, names, until)
                longest[arch] = max(longest.get(arch, 0.0), time.monotonic() - began)
                every.update(figures)
                for cell in some:
                    report.row(*cell, *_beside([figures[cell, name] for name in names]))
    report.say("\nSeconds to build, compile and take four steps, side by side:\n")
    report.table("network", "norm", "batch", *names, numbers_from=2)
    for cell in dict.fromkeys(cell for cell, _ in every):
        ready = [every[cell, name].ready for name in names]
        report.row(*cell, *("–" if each is None else f"{each:.1f}" for each in ready))
    bench.keep("throughput", every)
    report.left_out(skipped, "for the time was up")
    _aim(report, every)


def _beside(figures: list[Figure]) -> list[str]:
    """The engine's figure, and its peers' with the ratio to each."""
    own, *peers = figures
    cells = [str(own)]
    for each in peers:
        lost = own.lost or each.lost
        cells.append(str(each) if lost else f"{each} ×{own.median / each.median:.2f}")
    return cells


def _aim(report: Report, every: dict[tuple[Cell, str], Figure]) -> None:
    for cell in dict.fromkeys(cell for cell, _ in every):
        eager = [every[cell, name] for name in EAGER if (cell, name) in every]
        own, eager = every[cell, "engine"], [each for each in eager if not each.lost]
        if cell.batch == 16 and cell.norm.startswith("gn") and eager and not own.lost:
            ratio = own.median / max(each.median for each in eager)
            met = "met" if ratio >= 3 else "missed"
            report.say(f"\nAim, 3 times eager: {cell}, ×{ratio:.2f} of the faster layout, {met}.")


def limits(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    norm = settings.norms[0]
    wanted = [Cell(a, norm, b) for b in settings.batches for a in settings.archs]
    skipped, longest = [], 0.0
    for cell in wanted:
        if cell in bench.engine:
            continue
        began = time.monotonic()
        if began + longest > until - 20:
            skipped.append(cell)
            continue
        bench.keep("limits", bench.stage([cell], ["engine"], until - 20))
        longest = max(longest, time.monotonic() - began)
    try:
        worker = bench.worker("engine")
        ceilings = worker.ask(until, "ceilings", copied=settings.copied, side=settings.side)
    except Lost as reason:
        report.left_out(["limits"], str(reason))
        return
    report.raw["ceilings"] = ceilings
    launch, copy, product = (ceilings[name] for name in ("launch", "copy", "product"))
    report.say(
        f"A tiny kernel in a lax loop: {'–' if launch is None else f'{1e6 * launch:.2f} µs'}; "
        f"copy: {copy / 1e9:,.0f} GB/s, read and written; bfloat16 matrix product "
        f"({settings.side}): {product / 1e12:,.1f} TFLOP/s. Each bound in ms, and its share of "
        "the engine's step.\n"
    )
    columns = ("step, ms", "kernels", "launches", "MB", "memory", "GFLOP", "arithmetic")
    report.table("network", "norm", "batch", *columns, numbers_from=2)
    for cell, figure in bench.engine.items():
        if figure.cost is None:
            continue
        cost, step = figure.cost, cell.batch / figure.median

        def bound(seconds: float | None, step: float = step) -> str:
            return "–" if seconds is None else f"{1e3 * seconds:.3f} ({seconds / step:.0%})"

        flops = cost["flops"]
        report.row(
            *cell,
            f"{1e3 * step:.3f}",
            cost["kernels"],
            bound(None if launch is None else cost["kernels"] * launch),
            f"{cost['bytes'] / 1e6:,.1f}",
            bound(cost["bytes"] / copy),
            "–" if flops is None else f"{flops / 1e9:,.2f}",
            bound(None if flops is None else flops / product),
        )
        report.raw.setdefault("step_cost", []).append({**cell._asdict(), "step": step, **cost})
    report.left_out(skipped, "for the time was up")


def together(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    bench.dismiss()
    cell = Cell("resnet20", "gn", 16)
    report.say(f"{cell}, engine: images/s of runs at once on the one GPU, each a process.\n")
    report.table("runs", "each", "all", "× one run")
    alone, best, longest, started = 0.0, 0.0, 0.0, 0
    for runs in settings.runs:
        began = time.monotonic()
        if began + longest > until:
            report.left_out([f"{runs} runs at once"], "for the time was up")
            continue
        workers = [bench.worker("engine", slot) for slot in range(runs)]
        new, started = workers[started:], runs
        try:
            for worker in new:
                worker.send("build", **bench.request(cell))
            for worker in new:
                worker.receive(until)
            for worker in workers:
                worker.send("go", seconds=6 * settings.seconds)
            rates = [worker.receive(until)["rate"] for worker in workers]
        except Lost as reason:
            report.left_out([f"{runs} runs at once"], str(reason))
            break
        total = sum(rates)
        alone, best = alone or total, max(best, total)
        report.row(runs, shown(rates, 0), f"{total:,.0f}", f"{total / alone:.2f}")
        report.raw.setdefault("together", []).append({"runs": runs, "rates": rates})
        bench.gain = best / alone
        longest = time.monotonic() - began
    bench.dismiss()


def sweep(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    report.say("ResNet-20, engine, images/s, medians (range):\n")
    report.table("norm", *map(str, settings.study_batches), numbers_from=1)
    figures: dict[tuple[Cell, str], Figure] = {}
    skipped: list[Cell] = []
    longest = 0.0
    for batch in settings.study_batches:
        began = time.monotonic()
        cells = [Cell("resnet20", norm, batch) for norm in settings.study_norms]
        if began + longest > until:
            skipped += cells
            continue
        figures.update(bench.stage(cells, ["engine"], until))
        longest = max(longest, time.monotonic() - began)
    rates: dict[str, dict[int, float]] = {}
    for norm in settings.study_norms:
        row = [figures.get((Cell("resnet20", norm, b), "engine")) for b in settings.study_batches]
        report.row(norm, *("–" if each is None else each for each in row))
        rates[norm] = {
            batch: each.median
            for batch, each in zip(settings.study_batches, row, strict=True)
            if each is not None and not each.lost
        }
    bench.keep("sweep", figures)
    report.left_out(skipped, "for the time was up")
    _study_hours(bench, rates, [f.ready for f in figures.values() if f.ready is not None])


def _study_hours(bench: Bench, rates: dict[str, dict[int, float]], ready: list[float]) -> None:
    """Estimate the hours of the study from images/s by norm and batch."""
    settings, report = bench.settings, bench.report
    cells = sum(map(len, rates.values()))
    if cells < len(settings.study_norms) * len(settings.study_batches):
        report.say("\nThe study's hours need all of its cells.")
        return
    study = Study.read()
    trained = study.seeds * study.epochs * settings.images

    def hours(gain: float) -> float:
        # Together they are no faster than the GPU is when one run has all it can use.
        return sum(
            trained / min(rate * gain, max(rate, *of_norm.values()))
            for of_norm in rates.values()
            for rate in of_norm.values()
        ) / 3600  # fmt: skip

    report.say(
        f"\n{cells * study.seeds} runs of {study.epochs} epochs of {settings.images:,} images, "
        f"training alone (no evaluation), one at a time: {hours(1):.2f} h; to make its {cells} "
        f"programs ready, {sum(ready) / 60:.1f} min more."
    )
    report.raw["study_hours"] = {"one": hours(1), "ready": sum(ready) / 3600}
    least = hours(1)
    if bench.gain is None:
        report.say("Several at once: not estimated, for the part together gave no figure.")
    else:
        least = min(least, hours(bench.gain))
        report.raw["study_hours"]["together"] = hours(bench.gain)
        report.say(
            f"With the best number at once: {hours(bench.gain):.2f} h, if every cell gains the "
            f"{bench.gain:.2f} times of GN at batch 16, up to its norm's fastest cell."
        )
    met = "met" if least + sum(ready) / 3600 < STUDY_HOURS else "missed"
    report.say(f"Aim, under {STUDY_HOURS:.0f} hours: {met}.")


def accuracy(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    if settings.data is None:
        report.left_out(["accuracy"], "for it needs --data")
        return
    bench.dismiss()
    batch = 64 if settings.rehearsal else 512
    recipe = {
        "arch": "airbench",
        "norm": "bn",
        "batch": batch,
        "width": settings.widths.get("airbench"),
        # airbench94's own normalization and, about, its rate and decay at this batch and momentum.
        "overrides": ["norm.momentum=0.6", "norm.scale=false", "eval_batch=500"],
        "epochs": settings.epochs,
        "rate": 0.5,
        "warmup": 0.2,
        "weight_decay": 1e-3,
        "smoothing": 0.2,
    }
    report.say(
        f"arch=airbench, BN, batch {batch}, {settings.epochs} epochs of all training images, SGD "
        f"with Nesterov momentum 0.9, peak rate {recipe['rate']}, weight decay "
        f"{recipe['weight_decay']}, warm-up {recipe['warmup']:.0%} and cosine, label smoothing "
        f"{recipe['smoothing']}, crops from padding 2 and flips; images are tested as they are.\n"
    )
    worker = bench.worker("engine")
    worker.send("train", **recipe, data=str(settings.data), limit=settings.data_limit)
    lines: list[dict[str, Any]] = []
    try:
        preparation = worker.receive(until)["preparation"]
        report.table("epoch", "seconds of training", "train loss", "test accuracy")
        while "done" not in (line := worker.receive(until)):
            lines.append(line)
            report.row(
                line["epoch"],
                f"{line['training']:.2f}",
                f"{line['train_loss']:.3f}",
                f"{line['accuracy']:.2%}",
            )
    except Lost as reason:
        report.left_out([f"accuracy after epoch {len(lines)}"], str(reason))
    report.raw["accuracy"] = {"recipe": recipe, "epochs": lines}
    if not lines:
        return
    reached = next((line for line in lines if line["accuracy"] >= 0.94), None)
    said = (
        f"94 % on test first after {reached['training']:.2f} s (epoch {reached['epoch']})"
        if reached
        else "94 % on test was not reached"
    )
    report.say(
        f"\n{said}; {lines[-1]['accuracy']:.2%} after the last epoch, "
        f"{lines[-1]['training']:.2f} s. Beside it, {preparation:.1f} s to build, whiten and "
        f"compile, and {sum(line['evaluation'] for line in lines):.2f} s for the tests."
    )
    bench.dismiss()


class Part(NamedTuple):
    run: Callable[[Bench, float], None]
    share: int  # of the time


PARTS: dict[str, Part] = {
    "throughput": Part(throughput, 45),
    "limits": Part(limits, 5),
    "together": Part(together, 15),
    "sweep": Part(sweep, 20),
    "accuracy": Part(accuracy, 15),
}
