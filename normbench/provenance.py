"""Where a run comes from: commits, versions, host, processor, command. Imports no framework."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import normbench

#: What a version is recorded of, and the distributions that bring it, in the order of trying.
PACKAGES: dict[str, tuple[str, ...]] = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
    "keras": ("keras", "keras-nightly"),
    "jax": ("jax",),
    "numpy": ("numpy",),
}

#: Seconds a git command may take; `git status` on a network file system can be slow.
GIT_TIMEOUT = 20.0


def utc_now() -> str:
    """Return the time as ISO-8601 in UTC, to the second: ``2026-11-21T07:57:00Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def version(package: str) -> str | None:
    """Return the installed version of a package by its distribution's record, importing nothing."""
    for name in PACKAGES.get(package, (package,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Return the versions of Python, normbench and the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "normbench": normbench.__version__}
    for package in PACKAGES:
        installed = version(package)
        if installed is not None:
            found[package] = installed
    return found


def _git(folder: Path, *arguments: str, trusted: bool) -> str | None:
    """Return what a git command prints, or None where it does not apply.

    Args:
        trusted: read a repository of another user, too. Only for the checkout whose code runs
            already: git refuses others' because their settings can name programs to run.
    """
    # A hook's GIT_DIR would send git elsewhere; optional locks would collide between runs.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    trust = ["-c", "safe.directory=*"] if trusted else []
    try:
        done = subprocess.run(
            ["git", *trust, "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):  # OSError: no git on this machine
        return None
    return done.stdout if done.returncode == 0 else None


def git_state(
    folder: Path, code: Sequence[Path] = (), trusted: bool = False
) -> dict[str, Any] | None:
    """Return ``{"commit", "dirty"}`` of the checkout that ``folder`` lies in, or None.

    Args:
        code: folders of it where a file that git does not know (and does not ignore) counts as
            dirty, too: code that runs without being in the commit.

    ``commit`` is 40 hex digits (None before the first commit); ``dirty`` is whether a tracked file
    differs from it.
    """
    status = ("status", "--porcelain=v2", "--branch")
    head = _git(folder, *status, "--untracked-files=no", trusted=trusted)
    if head is None:
        return None
    lines = head.splitlines()
    commit = next((x.removeprefix("# branch.oid ") for x in lines if "branch.oid" in x), None)
    dirty = any(not line.startswith("#") for line in lines)
    known = [str(path) for path in code if path.is_dir()]
    if known and not dirty:
        untracked = _git(folder, *status, "--", *known, trusted=trusted) or ""
        dirty = any(not line.startswith("#") for line in untracked.splitlines())
    return {"commit": None if commit == "(initial)" else commit, "dirty": dirty}


def package_git() -> dict[str, Any] | None:
    """The state of normbench's checkout; None where it is installed from a wheel."""
    package = Path(normbench.__file__).resolve().parent
    # An environment inside somebody's repository must not pass for a checkout of normbench.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py", trusted=True) is None:
        return None
    return git_state(package, code=[package, package.parent / "conf"], trusted=True)


def _top(folder: Path) -> Path | None:
    shown = _git(folder, "rev-parse", "--show-toplevel", trusted=False)
    return Path(shown.strip()).resolve() if shown else None


def processor() -> str:
    """Return the processor's name as the system shows it, else its architecture."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip().lower() in ("model name", "cpu model", "hardware") and value.strip():
                    return value.strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def collect(command: Sequence[str] | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Return a run's provenance, ready for its ``meta.json``.

    Args:
        command: the command line; this process's where None.
        folder: the working folder; this process's where None.

    Keys: ``git`` (`git_state` of normbench's checkout, None if it is none), ``git_folder`` (the
    same of the working folder, only where that is another repository), ``versions``, ``host``,
    ``processor``, ``command`` (list of arguments).
    """
    folder = Path.cwd() if folder is None else folder
    package = package_git()
    record: dict[str, Any] = {"git": package}
    here = _top(folder)
    if here is not None and (
        package is None or here not in Path(normbench.__file__).resolve().parents
    ):
        record["git_folder"] = git_state(folder)
    return record | {
        "versions": versions(),
        "host": socket.gethostname(),
        "processor": processor(),
        "command": list(sys.argv if command is None else command),
    }
