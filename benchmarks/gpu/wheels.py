"""Collect the packages that a machine without a network lacks, as wheels to carry there.

    python3 -m pip list --format=freeze > there.txt                             # on that machine
    python benchmarks/gpu/wheels.py there.txt wheels --python 3.12 --libc 2.28  # on this one
    python3 -m pip install --no-index --no-deps --target site wheels/*.whl      # on that machine

Includes every package that ``requirements-jax.lock`` pins and that machine lacks in any version,
except JAX itself, which must match the GPU's driver. A package without a wheel
(antlr4-python3-runtime) is built on this machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "requirements-jax.lock"
JAX = {"jax", "jaxlib"}
LIBC = (17, 24, 27, 28, 31, 34)
"""Minor versions of glibc that wheels are built for."""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(lock: str, there: str) -> list[str]:
    """Return ``name==version`` of each pinned package that a ``pip list`` does not have.

    Args:
        lock: Text of a lock file.
        there: Text of ``pip list --format=freeze``.
    """
    packages = {
        normalized(line.split("==")[0].strip()) for line in there.splitlines() if line.strip()
    }
    pinned = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)(.*)", lock, re.MULTILINE)
    # Any marker that does not name Linux is for another platform or an older Python.
    return [
        f"{name}=={version}"
        for name, version, rest in pinned
        if normalized(name) not in packages | JAX and (";" not in rest or "linux" in rest)
    ]


def download(requirement: str, folder: Path, python: str, libc: str) -> None:
    """Write the wheel of one package for a Python and a glibc into a folder."""
    newest = int(libc.split(".")[1])
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in LIBC if minor <= newest]
    words = [f"--platform={name}" for name in (*platforms, "manylinux2014_x86_64")]
    pip = [sys.executable, "-m", "pip"]
    common = ["--quiet", "--no-deps", requirement]
    platform_options = [
        "--only-binary=:all:",
        f"--python-version={python}",
        "--implementation=cp",
        *words,
    ]
    wheel = subprocess.run(
        [*pip, "download", *common, *platform_options, "--dest", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if wheel.returncode:
        subprocess.run([*pip, "wheel", *common, "--wheel-dir", str(folder)], check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("there", type=Path, help="what pip list --format=freeze printed there")
    options.add_argument("folder", type=Path, help="a folder for the wheels")
    options.add_argument("--python", default="3.12")
    options.add_argument("--libc", default="2.28", help="version of glibc there (ldd --version)")
    options.add_argument("--list", action="store_true", help="only name them")
    args = options.parse_args()
    for requirement in missing(LOCK.read_text(), args.there.read_text()):
        print(requirement, flush=True)
        if not args.list:
            args.folder.mkdir(parents=True, exist_ok=True)
            download(requirement, args.folder, args.python, args.libc)


if __name__ == "__main__":
    main()
