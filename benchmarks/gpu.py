"""Training speed on an NVIDIA GPU: this engine on JAX beside PyTorch, and the time to 94 %.

    python benchmarks/gpu.py --pack FOLDER --data cifar10.npz     # once, where the data is
    python benchmarks/gpu.py --data cifar10.npz --out results     # on the machine with the GPU

Needs JAX and PyTorch with CUDA, Keras and Hydra, but neither TensorFlow nor a network. ``--pack``
turns the official folder cifar-10-batches-py into one file of uint8 arrays: train_images
(N, 32, 32, 3), train_labels, test_images, test_labels. Other parts than ``accuracy`` train on
random images, 32×32.

Parts (``--parts``), all in bfloat16, and in ``--minutes`` together; a part names the cells that no
longer fit:
  throughput  images/s of each network at each batch size: the engine; PyTorch eager; eager with
              channels_last; compiled with channels_last; the same with mode="reduce-overhead"
  together    one, two, four and eight processes that each train ResNet-20, GN, batch 16, at once
  accuracy    seconds to 94 % on CIFAR-10's test images with arch=airbench

Each contender is a process of its own (``gpu_worker.py``) that sits idle while another is measured;
they make their networks ready side by side. Figures are medians over interleaved rounds with their
range. PyTorch has its images and their augmentation on the GPU, in large pieces; cuDNN's benchmark,
TF32, a fused optimizer. It keeps no record of loss, accuracy and gradient of each step as the
engine does, and its losses are never read. ``--rehearse`` runs every part, tiny, on any device.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common import shown

HERE = Path(__file__).resolve().parent
COMPILED = ("engine", "compile", "compile-reduce-overhead")
EAGER = ("eager", "eager-channels-last")
IMAGES = 45_000
"""Images of an epoch: CIFAR-10's training set, with 5,000 held out."""
SIDE_BY_SIDE = 128
"""Largest batch at which networks of all norms are held in GPU memory at once."""
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class Lost(Exception):
    """A contender gave no figure; the message says why."""


class Cell(NamedTuple):
    arch: str
    norm: str
    batch: int

    def __str__(self) -> str:
        return f"{self.arch} {self.norm} {self.batch}"


@dataclass
class Figure:
    """What one contender gave for one cell."""

    rates: list[float] = field(default_factory=list)  # images/s
    ready: float | None = None
    parameters: int | None = None
    lost: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    def __str__(self) -> str:
        if self.lost:
            return "–"
        return shown(self.rates, 0)


@dataclass(frozen=True)
class Settings:
    archs: Sequence[str]
    norms: Sequence[str]
    batches: Sequence[int]
    rounds: int
    seconds: float
    data: Path | None
    epochs: int
    rehearsal: bool
    images: int = IMAGES
    widths: dict[str, float] = field(default_factory=dict)  # of narrower networks, by their arch
    runs: Sequence[int] = (1, 2, 4, 8)  # at once
    data_limit: int | None = None

    @classmethod
    def of(cls, given: argparse.Namespace) -> Settings:
        common = {"data": given.data, "archs": given.archs}
        if not given.rehearse:
            return cls(
                **common,
                norms=given.norms,
                batches=given.batches,
                rounds=given.rounds,
                seconds=given.seconds,
                epochs=given.epochs,
                rehearsal=False,
            )
        return cls(
            **common,
            norms=("gn",),
            batches=(16,),
            rounds=1,
            seconds=0.1,
            epochs=2,
            rehearsal=True,
            images=160,
            widths={"resnet20": 8, "resnet50": 8, "airbench": 0.25},
            runs=(1, 2),
            data_limit=512,
        )

    @contextmanager
    def bench(self, report: Report) -> Iterator[Bench]:
        with tempfile.TemporaryDirectory() as folder:
            made = Bench(self, report, Path(folder))
            try:
                yield made
            finally:
                made.dismiss()


class Report:
    """Prints as it goes, and keeps the text and the figures for ``--out``."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.raw: dict[str, Any] = {}

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, *columns: str, numbers_from: int = 0) -> None:
        self.say("| " + " | ".join(columns) + " |")
        rules = ["---" if i < numbers_from else "---:" for i in range(len(columns))]
        self.say("| " + " | ".join(rules) + " |")

    def row(self, *cells: Any) -> None:
        self.say("| " + " | ".join(map(str, cells)) + " |")

    def left_out(self, what: Sequence[Any], why: str) -> None:
        if what:
            names = ", ".join(map(str, what))
            self.say(f"\nLeft out, {why}: {names}.")
            self.raw.setdefault("left_out", []).append({"what": names, "why": why})

    def write(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        (self.folder / "gpu.json").write_text(json.dumps(self.raw, indent=1), encoding="utf-8")


class Worker:
    """A process that serves one contender; see ``gpu_worker.py``."""

    def __init__(self, contender: str, environment: dict[str, str], errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "gpu_worker.py"), contender],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
            )
        self.unread = b""

    def send(self, do: str, **request: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its answer will tell
            self.process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self, until: float) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            Lost: It is an error, or there is none at the monotonic time ``until``, or ever; in
                these two cases the process has ended.
        """
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self.close()
                raise Lost("not done in time")
            some = os.read(pipe, 1 << 16)
            if not some:
                self.close()
                raise Lost(f"its process ended: {self._last_words()}")
            self.unread += some
        line, _, self.unread = self.unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise Lost(answer["error"])
        return answer

    def ask(self, until: float, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.receive(until)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _last_words(self) -> str:
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"exit code {self.process.returncode}"


class Bench:
    """The contenders' processes, and what was measured with them."""

    def __init__(self, settings: Settings, report: Report, folder: Path) -> None:
        self.settings, self.report, self.folder = settings, report, folder
        self.workers: dict[tuple[str, int], Worker] = {}
        self.contenders = [*COMPILED[:1], *EAGER, *COMPILED[1:]]

    def worker(self, contender: str, slot: int = 0) -> Worker:
        """Return one of a contender's processes, started if it is not running."""
        running = self.workers.get((contender, slot))
        if running is None or not running.alive:
            paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                "KERAS_BACKEND": "jax",
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                # Of this run alone: what another one compiled would be no time to compile.
                "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            }
            errors = self.folder / f"{contender}-{slot}.txt"
            running = self.workers[contender, slot] = Worker(contender, environment, errors)
        return running

    def dismiss(self) -> None:
        """End all processes, which frees the GPU's memory."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def introduce(self, gpu: str | None) -> None:
        """Say what is measured on what; end where JAX does not see the GPU."""
        until = time.monotonic() + 120
        hello: dict[str, Any] = {}
        for name in ("engine", "eager"):
            self.worker(name).send("hello")
        try:
            hello["engine"] = self.worker("engine").receive(until)
        except Lost as reason:
            sys.exit(f"the engine cannot be measured: {reason}")
        if gpu and not hello["engine"]["gpu"] and not self.settings.rehearsal:
            sys.exit(f"{gpu} is here, but JAX does not use it: it has {hello['engine']['device']}")
        try:
            hello["eager"] = self.worker("eager").receive(until)
            if gpu and not hello["eager"]["gpu"]:
                raise Lost(f"it does not use {gpu}")
        except Lost as reason:
            self.contenders = ["engine"]
            self.report.left_out(["PyTorch"], str(reason))
        self.report.raw["machine"] = hello
        words = [gpu or hello["engine"]["device"], hello["engine"]["machine"]]
        words += [each["version"] for each in hello.values()]
        self.report.say(f"{'; '.join(words)}; bfloat16 (mixed), 32×32 images.")
        if self.settings.rehearsal and "eager" in hello:
            self._compare_sizes()

    def _compare_sizes(self) -> None:
        """Compare full-size networks; measured ones are compared as they are built."""
        sizes = []
        for arch in self.settings.archs:
            for norm in ("gn", "bn_ws", "none"):
                counts = [
                    self.worker(name).ask(time.monotonic() + 120, "count", arch=arch, norm=norm)
                    for name in ("engine", "eager")
                ]
                same_size(f"{arch} {norm}", [each["parameters"] for each in counts])
                sizes.append(f"{arch} {norm} {counts[0]['parameters']:,}")
        self.report.say(f"\nTrained parameters, equal in both: {', '.join(sizes)}.")

    def request(self, cell: Cell) -> dict[str, Any]:
        return {
            **cell._asdict(),
            "images": self.settings.images,
            "width": self.settings.widths.get(cell.arch),
            "rehearsal": self.settings.rehearsal,
        }

    def stage(
        self, cells: Sequence[Cell], contenders: Sequence[str], until: float
    ) -> dict[tuple[Cell, str], Figure]:
        """Make cells ready with each contender, side by side; then measure them by turns.

        Only one process computes while it is measured. Those that eager mode runs are made ready
        one after the other at the end: they take seconds, and most memory.
        """
        pairs = {
            (cell, name): self.worker(name, slot)
            for slot, cell in enumerate(cells)
            for name in contenders
        }
        figures = {pair: Figure() for pair in pairs}
        rounds, seconds = self.settings.rounds, self.settings.seconds
        ready_by = until - len(pairs) * rounds * (seconds + 0.3)
        for (cell, name), worker in pairs.items():
            if name not in EAGER:
                worker.send("build", **self.request(cell))
        for (cell, name), worker in sorted(pairs.items(), key=lambda item: item[0][1] in EAGER):
            if name in EAGER:
                worker.send("build", **self.request(cell))
            figure = figures[cell, name]
            with _losing(figure):
                answer = worker.receive(ready_by)
                figure.ready, figure.parameters = answer["ready"], answer["parameters"]
        for cell in cells:
            same_size(str(cell), [f.parameters for (c, _), f in figures.items() if c == cell])
        for _ in range(rounds):
            for pair, worker in pairs.items():
                if not figures[pair].lost:
                    with _losing(figures[pair]):
                        figures[pair].rates.append(worker.ask(until, "go", seconds=seconds)["rate"])
        return figures

    def keep(self, part: str, figures: dict[tuple[Cell, str], Figure]) -> None:
        """Put figures into the raw results, and say what was lost."""
        kept = self.report.raw.setdefault(part, [])
        kept += [
            {**cell._asdict(), "contender": name, **asdict(figure)}
            for (cell, name), figure in figures.items()
        ]
        lost: dict[str, list[str]] = {}
        for (cell, name), figure in figures.items():
            if figure.lost:
                lost.setdefault(figure.lost, []).append(f"{name} {cell}")
        for why, what in lost.items():
            self.report.left_out(what, why)


@contextmanager
def _losing(figure: Figure) -> Iterator[None]:
    try:
        yield
    except Lost as reason:
        figure.lost = str(reason)


def same_size(what: str, counts: Sequence[int | None]) -> None:
    if len({count for count in counts if count is not None}) > 1:
        sys.exit(f"the networks of {what} are not the same: trained parameters {counts}")


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


def _beside(figures: list[Figure]) -> list[str]:
    """The engine's figure, and its peers' with the ratio to each."""
    own, *peers = figures
    cells = [str(own)]
    for each in peers:
        lost = own.lost or each.lost
        cells.append(str(each) if lost else f"{each} ×{own.median / each.median:.2f}")
    return cells


def together(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    bench.dismiss()
    cell = Cell("resnet20", "gn", 16)
    report.say(f"{cell}, engine: images/s of runs at once on the one GPU, each a process.\n")
    report.table("runs", "each", "all", "× one run")
    alone, longest, started = 0.0, 0.0, 0
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
        alone = alone or total
        report.row(runs, shown(rates, 0), f"{total:,.0f}", f"{total / alone:.2f}")
        report.raw.setdefault("together", []).append({"runs": runs, "rates": rates})
        longest = time.monotonic() - began
    bench.dismiss()


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
    "throughput": Part(throughput, 60),
    "together": Part(together, 20),
    "accuracy": Part(accuracy, 20),
}


def nvidia_gpu() -> str | None:
    """Return the first GPU's name, from the driver; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    return name.value.decode()


def pack(folder: Path, file: Path) -> None:
    """Write the official python batches of CIFAR-10 into one file."""
    import pickle

    import numpy as np

    arrays = {}
    for split, names in (
        ("train", [f"data_batch_{number}" for number in range(1, 6)]),
        ("test", ["test_batch"]),
    ):
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
        planes = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        arrays[f"{split}_images"] = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        labels = np.concatenate([batch[b"labels"] for batch in batches])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez_compressed(file, **arrays)
    print(f"{file}: {len(arrays['train_labels'])} + {len(arrays['test_labels'])} images")


def check_data(file: Path) -> None:
    """End here, not after minutes, where the file is not what is asked for."""
    try:
        with zipfile.ZipFile(file) as archive:
            missing = [name for name in ARRAYS if f"{name}.npy" not in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        sys.exit(f"--data {file}: {error}")
    if missing:
        sys.exit(f"--data {file} lacks {', '.join(missing)}; see --pack")


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", type=Path, help="CIFAR-10 in one file, for the part accuracy")
    options.add_argument("--pack", type=Path, metavar="FOLDER", help="write that file, and end")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    options.add_argument(
        "--archs",
        nargs="+",
        choices=["resnet20", "resnet50", "airbench"],
        default=["resnet20", "airbench", "resnet50"],
    )
    options.add_argument("--batches", type=int, nargs="+", default=[16, 128, 512])
    options.add_argument(
        "--norms", nargs="+", choices=["none", "bn", "gn", "bn_ws", "gn_ws"], default=["gn", "bn"]
    )
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    options.add_argument("--epochs", type=int, default=24, help="of the part accuracy")
    options.add_argument("--out", type=Path, help="a folder for gpu.md and gpu.json")
    options.add_argument("--rehearse", action="store_true", help="without a GPU; measures nothing")
    given = options.parse_args()
    if given.pack and not given.data:
        options.error("--pack needs --data, the file to write")
    return given


def main() -> None:
    given = arguments()
    if given.pack:
        pack(given.pack, given.data)
        return
    gpu = nvidia_gpu()
    if gpu is None and not given.rehearse:
        sys.exit("benchmarks/gpu.py measures on an NVIDIA GPU, and there is none on this machine")
    if given.data:
        check_data(given.data)
    began = time.monotonic()
    settings = Settings.of(given)
    report = Report(given.out)
    if given.rehearse:
        report.say(
            "**REHEARSAL: tiny networks, no measurement. No number below means anything.**\n"
        )
    parts: dict[str, Any] = {name: PARTS[name] for name in PARTS if name in given.parts}
    with settings.bench(report) as bench:
        bench.introduce(gpu)
        left = sum(part.share for part in parts.values())
        for name, part in parts.items():
            # A part's share of the time that is left: what one does not use, the next ones have.
            now = time.monotonic()
            until = now + (began + 60 * given.minutes - now) * part.share / left
            left -= part.share
            report.say(f"\n## {name}\n")
            part.run(bench, until)
            report.say(f"\n{name} took {time.monotonic() - now:.0f} s.")
            report.write()
    if given.rehearse:
        report.say("\n**REHEARSAL: no number above means anything.**")
    report.write()


if __name__ == "__main__":
    main()
