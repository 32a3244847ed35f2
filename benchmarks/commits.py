"""Compare an earlier commit's training speed with the current tree's, on 32×32 images.

    python benchmarks/commits.py COMMIT [--arch vgg16] [--batches 16 128] [--norms none bn gn]

The commit's files are extracted to a temporary folder; the current tree is the other contender.
Each contender runs its own train_step.py in a separate process. They are measured alternately, and
the order is reversed from one round to the next. Prints images/s (median and range over rounds),
and the median and range of the ratio within a round, which drifts less than the machine does over
an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import machine, shown
from train_step import Contender, add_options

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def files_of(commit: str) -> Iterator[Path]:
    """Yield a temporary folder with the files of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "files.tar")
        process = subprocess.run(["git", "archive", "-o", archive, commit], cwd=ROOT, check=False)
        if process.returncode:
            raise SystemExit(2)  # git has printed the reason
        files = Path(folder, "files")
        shutil.unpack_archive(archive, files)
        yield files


def measured(checkouts: list[Path], cell: tuple[str, ...], rounds: int, seconds: float) -> str:
    """Measure two checkouts on one cell; return the cells of the table's row."""
    contenders = []
    for checkout in checkouts:
        contenders.append(Contender("engine", *cell, checkout=checkout))
        contenders[-1].rest()
    rates: list[list[float]] = [[], []]
    for turn in range(rounds):
        for index in (turn % 2, 1 - turn % 2):
            rates[index].append(contenders[index].rate(seconds))
            contenders[index].rest()
    for contender in contenders:
        contender.close()
    ratios = [after / before for before, after in zip(*rates, strict=True)]
    return " | ".join([*(shown(values, 0) for values in rates), shown(ratios)])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("commit", help="a commit whose benchmarks/train_step.py has --serve")
    add_options(options, sorted(file.stem for file in Path(ROOT, "conf", "arch").glob("*.yaml")))
    args = options.parse_args()
    with files_of(args.commit) as earlier:
        print(
            f"{args.arch}, 32×32, {args.precision}, {machine()}; images/s, median of "
            f"{args.rounds} (range)\n"
        )
        print(f"| norm | batch | {args.commit} | current tree | ratio |")
        print("| --- | ---: | ---: | ---: | ---: |", flush=True)
        for batch in args.batches:
            for norm in args.norms:
                cell = (args.arch, norm, str(batch), args.precision)
                row = measured([earlier, ROOT], cell, args.rounds, args.seconds)
                print(f"| {norm} | {batch} | {row} |", flush=True)


if __name__ == "__main__":
    main()
