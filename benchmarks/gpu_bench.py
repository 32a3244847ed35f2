"""What the parts of ``gpu.py`` share: settings, report, and the contenders' processes."""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from common import shown

HERE = Path(__file__).resolve().parent
COMPILED = ("engine", "compile", "compile-reduce-overhead")
EAGER = ("eager", "eager-channels-last")
CIFAR_IMAGES = 50_000  # of its training set, validation included


class Lost(Exception):
    """A contender gave no figure; the message says why."""


class Study(NamedTuple):
    """What the experiment ``batch_sweep`` trains, as its file says."""

    norms: list[str]
    batches: list[int]
    seeds: int
    epochs: int
    images: int  # an epoch

    @classmethod
    @cache
    def read(cls) -> Study:
        from normbench.sweep.grid import expand

        configs = expand(["+experiment=batch_sweep"])
        return cls(
            list(dict.fromkeys(each.norm_name for each in configs)),
            list(dict.fromkeys(each.batch for each in configs)),
            len({each.seed for each in configs}),
            configs[0].epochs,
            CIFAR_IMAGES - configs[0].dataset["validation"],
        )


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
    cost: dict[str, Any] | None = None
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
    parts: Sequence[str]
    images: int = field(default_factory=lambda: Study.read().images)
    widths: dict[str, float] = field(default_factory=dict)  # of narrower networks, by their arch
    runs: Sequence[int] = (1, 2, 4, 8)  # at once
    study_norms: Sequence[str] = field(default_factory=lambda: Study.read().norms)
    study_batches: Sequence[int] = field(default_factory=lambda: Study.read().batches)
    copied: int = 2**28  # float32 numbers, 1 GiB
    side: int = 8192
    data_limit: int | None = None

    @classmethod
    def of(cls, given: argparse.Namespace) -> Settings:
        common = {"data": given.data, "parts": given.parts, "archs": given.archs}
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
            study_norms=("bn", "gn_ws"),
            study_batches=(16,),
            copied=2**20,
            side=256,
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
        self.engine: dict[Cell, Figure] = {}
        self.gain: float | None = None  # images/s of the best number of runs at once, over one's

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
        for (cell, name), figure in figures.items():
            if name == "engine" and not figure.lost:
                self.engine[cell] = figure
                if "limits" in self.settings.parts:
                    with suppress(Lost):
                        figure.cost = pairs[cell, name].ask(until, "step_cost")
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
