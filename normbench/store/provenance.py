"""Provenance of a run: commits, versions, host, processor, command. Imports no framework.

The commit identifies the version of normbench that trained a run. It does not cover a user's own
code and data, such as a layer or a data set from ``--config-dir``. These are identified by hashes
of source files (:func:`own_code`) and of images and labels (:func:`own_data`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import normbench
from normbench.components import (
    DATASET_KEYS,
    NEWER_DATASET_KEYS,
    is_own,
    look_in_working_folder,
    make_source,
    options_of,
)
from normbench.machine import host_name, processor

#: Packages whose versions are recorded, with the distributions that may provide them, in order.
PACKAGES: dict[str, tuple[str, ...]] = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
    "keras": ("keras", "keras-nightly"),
    "jax": ("jax",),
    "numpy": ("numpy",),
}

#: Timeout of a git command in seconds; `git status` on a network file system can be slow.
GIT_TIMEOUT = 20.0


def utc_now() -> str:
    """Return the current time as ISO-8601 in UTC, to the second: ``2026-11-21T07:57:00Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def version(package: str) -> str | None:
    """Return the installed version of a package from its metadata, without importing it."""
    for name in PACKAGES.get(package, (package,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Return the versions of Python, normbench and the packages that affect a run's numbers."""
    result = {"python": platform.python_version(), "normbench": normbench.__version__}
    for package in PACKAGES:
        package_version = version(package)
        if package_version is not None:
            result[package] = package_version
    return result


def _git(folder: Path, *arguments: str, trusted: bool) -> str | None:
    """Return the output of a git command, or None if it fails.

    Args:
        folder: Folder to run it in.
        arguments: The command and its arguments.
        trusted: Also read a repository of another user. Only for the checkout whose code is running
            anyway: git refuses such repositories because their settings can name programs to run.
    """
    # GIT_DIR, set in hooks, would point git elsewhere; optional locks would collide between runs.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    trust = ["-c", "safe.directory=*"] if trusted else []
    try:
        process = subprocess.run(
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
    return process.stdout if process.returncode == 0 else None


def git_state(
    folder: Path, code: Sequence[Path] = (), trusted: bool = False
) -> dict[str, Any] | None:
    """Return ``{"commit", "dirty"}`` of the checkout that contains ``folder``, or None.

    ``commit`` is 40 hex digits (None before the first commit); ``dirty`` is whether a tracked file
    differs from it.

    Args:
        folder: A folder in the checkout.
        code: Folders in which untracked files count as changes, too, because they may be code that
            runs but is not in the commit.
        trusted: As for :func:`_git`.
    """
    status = ("status", "--porcelain=v2", "--branch")
    head = _git(folder, *status, "--untracked-files=no", trusted=trusted)
    if head is None:
        return None
    lines = head.splitlines()
    commit = next((x.removeprefix("# branch.oid ") for x in lines if "branch.oid" in x), None)
    dirty = any(not line.startswith("#") for line in lines)
    folders = [str(path) for path in code if path.is_dir()]
    if folders and not dirty:
        output = _git(folder, *status, "--", *folders, trusted=trusted) or ""
        dirty = any(not line.startswith("#") for line in output.splitlines())
    return {"commit": None if commit == "(initial)" else commit, "dirty": dirty}


def package_git() -> dict[str, Any] | None:
    """Return the state of normbench's checkout; None if it is installed from a wheel."""
    package = Path(normbench.__file__).resolve().parent
    # A virtual environment inside another repository is not a checkout of normbench.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py", trusted=True) is None:
        return None
    return git_state(package, code=[package, package.parent / "conf"], trusted=True)


def package_code() -> str:
    """Return the SHA-256 of normbench's source files.

    Unlike the commit, it distinguishes uncommitted changes.
    """
    package = Path(normbench.__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        digest.update(f"{name}\n".encode() + hashlib.sha256(_bytes(file)).digest())
    return digest.hexdigest()


def _top(folder: Path) -> Path | None:
    output = _git(folder, "rev-parse", "--show-toplevel", trusted=False)
    return Path(output.strip()).resolve() if output else None


def collect(command: Sequence[str] | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Return a run's provenance, ready for its ``meta.json``.

    Args:
        command: The command line; by default that of this process.
        folder: The working folder; by default that of this process.

    Returns:
        ``git`` (:func:`git_state` of normbench's checkout, or None), ``git_folder`` (the same for
        the working folder, only if it is in another repository), ``versions``, ``host``,
        ``processor`` and ``command`` (list of arguments).
    """
    folder = Path.cwd() if folder is None else folder
    package = package_git()
    record: dict[str, Any] = {"git": package}
    top = _top(folder)
    if top is not None and (
        package is None or top not in Path(normbench.__file__).resolve().parents
    ):
        record["git_folder"] = git_state(folder)
    return record | {
        "versions": versions(),
        "host": host_name(),
        "processor": processor(),
        "command": list(sys.argv if command is None else command),
    }


# --- the user's own code and data -----------------------------------------------------------------


def own_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of the code of each component in a config that is not part of normbench.

    Loggers are left out, because they do not affect a run's results.

    Args:
        config: A config as plain dicts.

    Returns:
        The SHA-256 of a component's source files (:func:`code_hash`), by ``_target_``; code
        without files is left out.
    """
    tree = {key: value for key, value in config.items() if key != "logger"}
    hashes = {path: code_hash(path) for path in sorted(set(_own_targets(tree)))}
    return {path: digest for path, digest in hashes.items() if digest is not None}


def own_data(dataset: Mapping[str, Any], fingerprint: str | None = None) -> dict[str, str]:
    """Return a hash of a run's images and labels, if its data set is not part of normbench.

    Args:
        dataset: The group ``dataset`` of a config.
        fingerprint: Result of :func:`data_hash`; None to read the data set and compute it.

    Returns:
        The SHA-256, keyed by the data set with its options, such as ``data of mine (path=a.npz)``.
        Empty for a data set of normbench, whose files have checksums.
    """
    if not is_own(dataset.get("_target_")):
        return {}
    options = options_of(dataset, *DATASET_KEYS, *NEWER_DATASET_KEYS)
    text = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    label = f"data of {dataset.get('name')}{f' ({text})' if text else ''}"
    return {label: fingerprint or data_hash(make_source(dataset).arrays())}


def data_hash(arrays: Any) -> str:
    """Return the SHA-256 of a data set's images and labels (:class:`normbench.data.Arrays`)."""
    import numpy as np

    digest = hashlib.sha256()
    names = ["train_images", "train_labels", "test_images", "test_labels"]
    if getattr(arrays, "validation_images", None) is not None:
        names += ["validation_images", "validation_labels"]
    for name in names:
        array = np.asarray(getattr(arrays, name))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        for start in range(0, len(array), 1024):  # in pieces: it may be mapped from a large file
            digest.update(np.ascontiguousarray(array[start : start + 1024]).tobytes())
    return digest.hexdigest()


@cache
def code_hash(path: str) -> str | None:
    """Return the SHA-256 of the source files behind a dotted path; None if there are none.

    These are the files of its module and of the modules of the same project that it imports,
    directly or indirectly. Modules belong to the same project if they share a top-level package, or
    are in the same folder and it is not one for installed packages. The hash is computed once per
    process, because a module is loaded only once.
    """
    files = code_files(path)
    if not files:
        return None
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\n".encode() + hashlib.sha256(_bytes(file)).digest())
    return digest.hexdigest()


def code_files(path: str) -> dict[str, Path]:
    """Return the source files behind a dotted path, keyed by module name.

    These are the files that :func:`code_hash` hashes; empty if there is no such module.
    """
    look_in_working_folder()
    return _project_files(path.rpartition(".")[0])


def installed_package(path: str) -> str | None:
    """Return the requirement for the installed package behind a dotted path: ``my-norms==1.2``.

    Returns:
        The requirement, or only the name if the version is not known; None if the code does not
        belong to an installed package.
    """
    look_in_working_folder()
    top = path.partition(".")[0]
    if _spec(top) is None or _root(top) is not None:
        return None
    name = next(iter(metadata.packages_distributions().get(top, [])), top)
    installed_version = version(name)
    return name if installed_version is None else f"{name}=={installed_version}"


def own_changes(recorded: Mapping[str, Any] | None, now: Mapping[str, str]) -> list[str]:
    """Return a line for each of a user's components or data sets that differs from a run's version.

    Args:
        recorded: The run's ``meta["own"]``: by name, the hashes of the versions that it was trained
            with, in order.
        now: Current results of :func:`own_code` and :func:`own_data`.
    """
    lines = []
    for name, version_now in now.items():
        versions_then = list((recorded or {}).get(name) or [])
        if not versions_then:
            lines.append(f"the run does not record which version of {name} it was trained with")
        elif versions_then != [version_now]:
            digests = " and ".join(digest[:10] for digest in versions_then)
            lines.append(f"the run was trained with {name} {digests}, this is {version_now[:10]}")
    return lines


def changed_since(run_config: Mapping[str, Any], recorded: Any, config: Any) -> list[str]:
    """Return a line for each of a user's components or data sets that changed since a run ended.

    Args:
        run_config: The recorded config of the run. Probes that it lacks are not compared.
        recorded: The run's ``meta["own"]``.
        config: The :class:`normbench.config.Config` that found the run complete.
    """
    old_probes = run_config.get("probe") or {}
    probes = {name: group for name, group in config.probe.items() if name in old_probes}
    current = own_code({**vars(config), "probe": probes})
    notes = []
    try:
        current |= own_data(config.dataset)
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        notes = [f"cannot tell whether its data set has changed: {reason}"]
    return [*own_changes(recorded, current), *notes]


def _own_targets(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if is_own(value.get("_target_")):
            yield value["_target_"]
        for item in value.values():
            yield from _own_targets(item)


def _project_files(module: str) -> dict[str, Path]:
    """Return the files of a module and of the modules of its project that it imports, by name."""
    project = module.partition(".")[0]
    root = _root(project)
    files: dict[str, Path] = {}
    stack, seen_names = [module], {module}
    while stack:
        name = stack.pop()
        packages = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        spec = _spec(name)
        if spec is None or not spec.origin or not Path(spec.origin).is_file():
            continue
        files[name] = Path(spec.origin)
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        for other in [*packages, *_imported(files[name], package)]:
            top = other.partition(".")[0]
            is_same_project = top == project or (root is not None and _root(top) == root)
            if other not in seen_names and is_same_project and top != "normbench":
                seen_names.add(other)
                stack.append(other)
    return files


def _imported(file: Path, package: str) -> Iterator[str]:
    """Yield the modules that a source file may import, at any level of nesting."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(_bytes(file))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: max(package.count(".") + 2 - node.level, 0)]
                if node.level
                else []
            )
            name = ".".join([*parents, *([node.module] if node.module else [])])
            if name:
                yield name
                yield from (f"{name}.{alias.name}" for alias in node.names)


@cache
def _spec(name: str) -> ModuleSpec | None:
    """Find a module without importing it or its parent packages."""
    top, *inner_names = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for index in range(len(inner_names)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        inner = ".".join([top, *inner_names[: index + 1]])
        spec = PathFinder.find_spec(inner, list(spec.submodule_search_locations))
    return spec


def _root(top: str) -> Path | None:
    """Return the folder that contains a module or package; None if packages are installed there."""
    spec = _spec(top)
    if spec is None or not spec.origin:
        return None
    file = Path(spec.origin).resolve()
    folder = file.parent.parent if spec.submodule_search_locations is not None else file.parent
    paths = sysconfig.get_paths()
    libraries = [Path(paths[key]).resolve() for key in ("stdlib", "platstdlib", "purelib")]
    in_packages = {"site-packages", "dist-packages"} & set(folder.parts)
    return None if in_packages or any(map(folder.is_relative_to, libraries)) else folder


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
