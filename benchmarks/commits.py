"""Training speed of a network on 32×32 images: an earlier commit's engine beside today's.

    python benchmarks/commits.py COMMIT [--arch vgg16] [--batches 16 128] [--norms none bn gn]

The commit's files are laid out in a folder of their own for as long as it takes; the tree as it
stands is the other contender. Each has a process, served by its own commit's train_step.py, and
they are measured in turns, the first of a round being the second of the next. Prints images/s,
medians over rounds with their range, and the median and range of the rounds' ratios, which drift
less than an hour's machine does.
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
    """A folder with the files of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "files.tar")
        told = subprocess.run(["git", "archive", "-o", archive, commit], cwd=ROOT, check=False)
        if told.returncode:
            raise SystemExit(2)  # git has said why
        files = Path(folder, "files")
        shutil.unpack_archive(archive, files)
        yield files


def measured(checkouts: list[Path], cell: tuple[str, ...], rounds: int, seconds: float) -> str:
    """Cells of the table's row, from a contender for each of two folders with a commit's files."""
    contenders = []
    for each in checkouts:
        contenders.append(Contender("engine", *cell, checkout=each))
        contenders[-1].rest()
    rates: list[list[float]] = [[], []]
    for turn in range(rounds):
        for which in (turn % 2, 1 - turn % 2):
            rates[which].append(contenders[which].rate(seconds))
            contenders[which].rest()
    for each in contenders:
        each.close()
    ratios = [after / before for before, after in zip(*rates, strict=True)]
    return " | ".join([*(shown(each, 0) for each in rates), shown(ratios)])


def main() -> None:
    options = argparse.ArgumentParser(description="An earlier commit's engine beside today's.")
    options.add_argument("commit", help="one whose benchmarks/train_step.py has --serve")
    add_options(options, sorted(each.stem for each in Path(ROOT, "conf", "arch").glob("*.yaml")))
    given = options.parse_args()
    with files_of(given.commit) as earlier:
        print(
            f"{given.arch}, 32×32, {given.precision}, {machine()}; images/s, median of "
            f"{given.rounds} (range)\n"
        )
        print(f"| norm | batch | {given.commit} | as it stands | ratio |")
        print("| --- | ---: | ---: | ---: | ---: |", flush=True)
        for batch in given.batches:
            for norm in given.norms:
                cell = (given.arch, norm, str(batch), given.precision)
                row = measured([earlier, ROOT], cell, given.rounds, given.seconds)
                print(f"| {norm} | {batch} | {row} |", flush=True)


if __name__ == "__main__":
    main()
