"""Training speed on an NVIDIA GPU: normbench on JAX compared with PyTorch and the GPU's limits.

    python benchmarks/gpu/fast.py --out results

Needs JAX and PyTorch with CUDA, Keras and Hydra, but neither TensorFlow nor a network. Trains on
random images, 32×32. All parts (``--parts``) together take ``--minutes``; a part lists the cells
for which there was no time:
  throughput  images/s of each network at each batch size and precision: the engine; PyTorch eager;
              eager with channels_last; compiled with channels_last; the same with
              mode="reduce-overhead" (CUDA graphs)
  limits      the engine's step compared with three lower bounds: its kernels at the cost of a
              launch, the bytes they move at the speed of a copy, its operations at that of a
              matrix product
  together    one, two, four and eight processes that each train ResNet-20, GN, batch 16, at once

Each contender has its own process (``worker.py``), which is idle while another is measured; they
build and compile their networks in parallel. Results are medians over interleaved rounds with their
range. PyTorch gets its images on the GPU, augmented there in large chunks, cuDNN's benchmark mode,
TF32 and a fused optimizer. Unlike the engine, it does not record each step's loss, accuracy and
gradient norm, and its losses are never read. ``--engine NAME=WORDS`` adds the engine once more,
with other XLA flags (``--xla…``) or environment variables (``NAME=VALUE``). ``--rehearse`` runs
every part with tiny networks, on any device.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parent
sys.path.insert(0, str(BENCHMARKS))

from common import import_path, shown  # noqa: E402

PEERS = ("eager", "eager-channels-last", "compile", "compile-reduce-overhead")
IMAGES = 45_000
"""Images per epoch: CIFAR-10's training set, with 5,000 held out."""
SIDE_BY_SIDE = 128
"""Largest batch at which networks of all norms are held in GPU memory at once."""


class Lost(Exception):
    """A contender could not be measured; the message says why."""


class Cell(NamedTuple):
    arch: str
    norm: str
    batch: int
    precision: str

    def __str__(self) -> str:
        return f"{self.arch} {self.norm} {self.batch} {self.precision}"


@dataclass
class Figure:
    """The measurements of one contender in one cell."""

    rates: list[float] = field(default_factory=list)  # images/s
    ready: float | None = None  # seconds to build, compile and warm up
    parameters: int | None = None
    cost: dict[str, Any] | None = None  # of one step of the engine; see worker.py
    lost: str = ""  # why there are no rates

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
    precisions: Sequence[str]
    engines: dict[str, str]  # extra XLA flags and environment variables of each engine, by name
    peers: Sequence[str]
    parts: Sequence[str]
    rounds: int
    seconds: float
    rehearsal: bool
    images: int = IMAGES
    widths: dict[str, float] = field(default_factory=dict)  # of narrower networks, by arch
    runs: Sequence[int] = (1, 2, 4, 8)  # numbers of simultaneous runs
    copied: int = 2**28  # float32 values that the copy benchmark moves
    side: int = 8192  # side of the bfloat16 matrices that are multiplied

    @classmethod
    def of(cls, args: argparse.Namespace) -> Settings:
        engines = dict(pair.split("=", 1) for pair in args.engine)
        common = {
            "archs": args.archs,
            "engines": {"engine": "", **engines},
            "peers": args.peers,
            "parts": args.parts,
        }
        if not args.rehearse:
            return cls(
                **common,
                norms=args.norms,
                batches=args.batches,
                precisions=args.precisions,
                rounds=args.rounds,
                seconds=args.seconds,
                rehearsal=False,
            )
        return cls(
            **common,
            norms=("gn",),
            batches=(16,),
            precisions=("mixed_bfloat16",),
            rounds=1,
            seconds=0.1,
            rehearsal=True,
            images=160,
            widths={"resnet20": 8, "resnet50": 8, "airbench": 0.25},
            runs=(1, 2),
            copied=2**16,
            side=64,
        )

    @contextmanager
    def bench(self, report: Report) -> Iterator[Bench]:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(self, report, Path(folder))
            try:
                yield bench
            finally:
                bench.dismiss()


class Report:
    """Print results as they come, and collect text and raw values for ``--out``."""

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
        (self.folder / "fast.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        (self.folder / "fast.json").write_text(json.dumps(self.raw, indent=1), encoding="utf-8")


class Worker:
    """A process that serves one contender; see ``worker.py``."""

    def __init__(self, contender: str, environment: dict[str, str], errors: Path) -> None:
        self.errors = errors
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), contender],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
            )
        self.unread = b""

    def send(self, do: str, **request: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # receive() reports that the process ended
            self.process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self.process.stdin.flush()

    def receive(self, until: float) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            Lost: The answer is an error, there is none by the monotonic time ``until``, or the
                process ended. After a timeout the process is killed.
        """
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self.unread:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self.close()
                raise Lost("not done in time")
            data = os.read(pipe, 1 << 16)
            if not data:
                self.close()
                raise Lost(f"its process ended: {self._last_words()}")
            self.unread += data
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
    """The contenders' processes and their measurements."""

    def __init__(self, settings: Settings, report: Report, folder: Path) -> None:
        self.settings, self.report, self.folder = settings, report, folder
        self.workers: dict[tuple[str, int], Worker] = {}
        self.contenders = [*settings.engines, *settings.peers]
        self.engine: dict[Cell, Figure] = {}  # measurements of the engine without extra flags

    def worker(self, contender: str, slot: int = 0) -> Worker:
        """Return one of a contender's processes; start it if it is not running."""
        worker = self.workers.get((contender, slot))
        if worker is None or not worker.alive:
            words = self.settings.engines.get(contender, "").split()
            flags = [os.environ.get("XLA_FLAGS", ""), *(w for w in words if w.startswith("--"))]
            environment = {
                **os.environ,
                "PYTHONPATH": import_path(BENCHMARKS),
                "KERAS_BACKEND": "jax",
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "XLA_FLAGS": " ".join(filter(None, flags)),
                **dict(word.split("=", 1) for word in words if not word.startswith("--")),
                # Fresh caches: code compiled by an earlier run would make compile times too short.
                "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / f"jax-{contender}"),
            }
            errors = self.folder / f"{contender}-{slot}.txt"
            kind = "engine" if contender in self.settings.engines else contender
            worker = self.workers[contender, slot] = Worker(kind, environment, errors)
        return worker

    def dismiss(self) -> None:
        """End all processes, which frees the GPU's memory."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()

    def introduce(self, gpu: str | None) -> None:
        """Print the hardware, versions and contenders; exit if JAX does not see the GPU."""
        until = time.monotonic() + 120
        hello: dict[str, Any] = {}
        peer = self.settings.peers[0] if self.settings.peers else None
        for name in filter(None, ("engine", peer)):
            self.worker(name).send("hello")
        try:
            hello["engine"] = self.worker("engine").receive(until)
        except Lost as reason:
            sys.exit(f"the engine cannot be measured: {reason}")
        if gpu and not hello["engine"]["gpu"] and not self.settings.rehearsal:
            sys.exit(f"{gpu} is here, but JAX does not use it: it has {hello['engine']['device']}")
        if peer:
            try:
                hello[peer] = self.worker(peer).receive(until)
                if gpu and not hello[peer]["gpu"]:
                    raise Lost(f"it does not use {gpu}")
            except Lost as reason:
                self.contenders = list(self.settings.engines)
                self.report.left_out(["PyTorch"], str(reason))
        self.report.raw["machine"] = hello
        words = [gpu or hello["engine"]["device"], hello["engine"]["machine"]]
        words += [answer["version"] for answer in hello.values()]
        self.report.say(f"{'; '.join(words)}; 32×32 images.")
        for name, words in self.settings.engines.items():
            if words:
                self.report.say(f"{name}: the engine with {words}")
        if self.settings.rehearsal and peer in hello:
            self._compare_sizes(peer)

    def _compare_sizes(self, peer: str) -> None:
        """Compare parameter counts at full size; measured networks are checked when built."""
        sizes = []
        for arch in self.settings.archs:
            for norm in ("gn", "bn_ws", "none"):
                counts = [
                    self.worker(name).ask(time.monotonic() + 120, "count", arch=arch, norm=norm)
                    for name in ("engine", peer)
                ]
                same_size(f"{arch} {norm}", [answer["parameters"] for answer in counts])
                sizes.append(f"{arch} {norm} {counts[0]['parameters']:,}")
        self.report.say(f"\nTrained parameters, equal in both: {', '.join(sizes)}.")

    def request(self, cell: Cell, name: str) -> dict[str, Any]:
        return {
            **cell._asdict(),
            "images": self.settings.images,
            "width": self.settings.widths.get(cell.arch),
            "cost": name == "engine" and "limits" in self.settings.parts,
            "rehearsal": self.settings.rehearsal,
        }

    def stage(
        self, cells: Sequence[Cell], contenders: Sequence[str], until: float
    ) -> dict[tuple[Cell, str], Figure]:
        """Build cells with each contender in parallel; then measure them alternately.

        While one process is measured, the others are idle.
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
            worker.send("build", **self.request(cell, name))
        for (cell, name), worker in pairs.items():
            figure = figures[cell, name]
            with _losing(figure):
                answer = worker.receive(ready_by)
                figure.ready, figure.parameters = answer["ready"], answer["parameters"]
                figure.cost = answer.get("cost")
        for cell in cells:
            same_size(str(cell), [f.parameters for (c, _), f in figures.items() if c == cell])
        for _ in range(rounds):
            for pair, worker in pairs.items():
                if not figures[pair].lost:
                    with _losing(figures[pair]):
                        figures[pair].rates.append(worker.ask(until, "go", seconds=seconds)["rate"])
        self.engine |= {c: f for (c, name), f in figures.items() if name == "engine" and f.rates}
        return figures

    def keep(self, part: str, figures: dict[tuple[Cell, str], Figure]) -> None:
        """Add measurements to the raw results, and report those that failed."""
        raw = self.report.raw.setdefault(part, [])
        raw += [
            {**cell._asdict(), "contender": name, **asdict(figure)}
            for (cell, name), figure in figures.items()
        ]
        failures: dict[str, list[str]] = {}
        for (cell, name), figure in figures.items():
            if figure.lost:
                failures.setdefault(figure.lost, []).append(f"{name} {cell}")
        for reason, names in failures.items():
            self.report.left_out(names, reason)


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
    report.table("network", "norm", "batch", "precision", "engine", *peers, numbers_from=2)
    all_figures: dict[tuple[Cell, str], Figure] = {}
    skipped_cells: list[Cell] = []
    longest: dict[str, float] = {}
    for precision, batch in product(settings.precisions, settings.batches):
        for arch in settings.archs:
            cells = [Cell(arch, norm, batch, precision) for norm in settings.norms]
            for group in [cells] if batch <= SIDE_BY_SIDE else [[cell] for cell in cells]:
                start = time.monotonic()
                if start + longest.get(arch, 0.0) > until:
                    skipped_cells += group
                    continue
                figures = bench.stage(group, names, until)
                longest[arch] = max(longest.get(arch, 0.0), time.monotonic() - start)
                all_figures.update(figures)
                for cell in group:
                    report.row(*cell, *_with_ratios([figures[cell, name] for name in names]))
    report.say("\nSeconds to build, compile and take four steps, in parallel:\n")
    report.table("network", "norm", "batch", "precision", *names, numbers_from=2)
    for cell in dict.fromkeys(cell for cell, _ in all_figures):
        times = [all_figures[cell, name].ready for name in names]
        report.row(*cell, *("–" if seconds is None else f"{seconds:.1f}" for seconds in times))
    bench.keep("throughput", all_figures)
    report.left_out(skipped_cells, "for the time was up")


def _with_ratios(figures: list[Figure]) -> list[str]:
    """Format the engine's images/s, and each peer's with the engine's ratio to it."""
    engine, *peers = figures
    cells = [str(engine)]
    for peer in peers:
        failure = engine.lost or peer.lost
        cells.append(str(peer) if failure else f"{peer} ×{engine.median / peer.median:.2f}")
    return cells


def limits(bench: Bench, until: float) -> None:
    """Compare the engine's step times, measured by the part throughput, with lower bounds."""
    report = bench.report
    size = {"copied": bench.settings.copied, "side": bench.settings.side}
    try:
        ceilings = bench.worker("engine").ask(until, "ceilings", **size)
    except Lost as reason:
        report.left_out(["limits"], str(reason))
        return
    report.raw["ceilings"] = ceilings
    launch, copy, matmul = (ceilings[name] for name in ("launch", "copy", "product"))
    report.say(
        f"A tiny kernel in a lax loop: {'–' if launch is None else f'{1e6 * launch:.2f} µs'}; "
        f"copy: {copy / 1e9:,.0f} GB/s, read and written; bfloat16 matrix product "
        f"({size['side']}): {matmul / 1e12:,.1f} TFLOP/s. Each bound in ms, and its share of "
        "the engine's step.\n"
    )
    columns = ("step, ms", "kernels", "launches", "MB", "memory", "GFLOP", "arithmetic")
    report.table("network", "norm", "batch", "precision", *columns, numbers_from=2)
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
            bound(None if flops is None else flops / matmul),
        )
        report.raw.setdefault("step_cost", []).append({**cell._asdict(), "step": step, **cost})


def together(bench: Bench, until: float) -> None:
    settings, report = bench.settings, bench.report
    bench.dismiss()
    cell = Cell("resnet20", "gn", 16, settings.precisions[0])
    report.say(f"{cell}, engine: images/s of runs at once on the one GPU, each a process.\n")
    report.table("runs", "each", "all", "× one run")
    single_rate, longest, worker_count = 0.0, 0.0, 0
    for runs in settings.runs:
        start = time.monotonic()
        if start + longest > until:
            report.left_out([f"{runs} runs at once"], "for the time was up")
            continue
        workers = [bench.worker("engine", slot) for slot in range(runs)]
        new_workers, worker_count = workers[worker_count:], runs
        try:
            # The first fills the compilation cache for the others.
            for group in (new_workers[:1], new_workers[1:]):
                for worker in group:
                    worker.send("build", **bench.request(cell, "together"))
                for worker in group:
                    worker.receive(until)
            for worker in workers:
                worker.send("go", seconds=6 * settings.seconds)
            rates = [worker.receive(until)["rate"] for worker in workers]
        except Lost as reason:
            report.left_out([f"{runs} runs at once"], str(reason))
            break
        total = sum(rates)
        single_rate = single_rate or total
        report.row(runs, shown(rates, 0), f"{total:,.0f}", f"{total / single_rate:.2f}")
        report.raw.setdefault("together", []).append({"runs": runs, "rates": rates})
        longest = time.monotonic() - start
    bench.dismiss()


class Part(NamedTuple):
    run: Callable[[Bench, float], None]
    share: int  # of the total time, in percent


PARTS: dict[str, Part] = {
    "throughput": Part(throughput, 70),
    "limits": Part(limits, 10),
    "together": Part(together, 20),
}


def nvidia_gpu() -> str | None:
    """Return the first GPU's name, from the driver; None if there is none."""
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


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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
    options.add_argument(
        "--precisions",
        nargs="+",
        choices=["mixed_bfloat16", "float32"],
        default=["mixed_bfloat16", "float32"],
    )
    options.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    options.add_argument("--engine", action="append", default=[], metavar="NAME=WORDS")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    options.add_argument("--out", type=Path, help="a folder for fast.md and fast.json")
    options.add_argument("--rehearse", action="store_true", help="without a GPU; measures nothing")
    return options.parse_args()


def main() -> None:
    args = arguments()
    gpu = nvidia_gpu()
    if gpu is None and not args.rehearse:
        sys.exit(
            "benchmarks/gpu/fast.py measures on an NVIDIA GPU, and there is none on this machine"
        )
    start = time.monotonic()
    settings = Settings.of(args)
    report = Report(args.out)
    if args.rehearse:
        report.say(
            "**REHEARSAL: tiny networks, no measurement. No number below means anything.**\n"
        )
    parts: dict[str, Any] = {name: PARTS[name] for name in PARTS if name in args.parts}
    with settings.bench(report) as bench:
        bench.introduce(gpu)
        share_left = sum(part.share for part in parts.values())
        for name, part in parts.items():
            # Each part gets its share of the remaining time, so unused time goes to later parts.
            now = time.monotonic()
            until = now + (start + 60 * args.minutes - now) * part.share / share_left
            share_left -= part.share
            report.say(f"\n## {name}\n")
            part.run(bench, until)
            report.say(f"\n{name} took {time.monotonic() - now:.0f} s.")
            report.write()
    if args.rehearse:
        report.say("\n**REHEARSAL: no number above means anything.**")
    report.write()


if __name__ == "__main__":
    main()
