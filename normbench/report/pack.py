"""One archive of a store for a paper's artifact: :func:`pack`.

The archive is deterministic: the same store and file name give the same bytes (the folder in the
archive is named after the file). Entries are sorted, have no owner and a fixed date, and neither
the report nor the compressed file contains a timestamp.

Runs with user-defined components, whose config files are in a folder of ``--config-dir``, can only
be verified with these files and the modules that they refer to. The folder ``own/`` of the archive
contains those that the runs use, and no other user files.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import normbench
from normbench.components import conf_dir, group_options, is_own, own_files, recorded_components
from normbench.errors import UserError
from normbench.formats import counted
from normbench.report.frames import as_store
from normbench.report.report import report
from normbench.store import annotations, files, provenance, records
from normbench.store.store import SWEEPS, VERIFICATIONS, Run, Store, StoreError

Say = Callable[[str], None]

RUN_FILES = ("config.yaml", "meta.json", "metrics.jsonl", "summary.json", "diagnosis.jsonl",
             "log.txt", annotations.FILE)  # fmt: skip
"""Files of a run folder to pack. Locks and logger files are not packed."""

CHECKPOINTS = ("checkpoint/last.npz", "checkpoint/best.npz")
SWEEP_FILES = ("sweep.json", "outcome.jsonl", "tuning.json")

OWN = "own"
"""Folder of the archive with the user's own config files, in ``conf/``, and modules."""

MANIFEST = "MANIFEST"
"""Checksums of all other files, in the format of ``sha256sum``."""

DATE = 315532800
"""Date of every entry in seconds, 1980-01-01: the earliest that every archive format supports."""

_ENDINGS = (".tar.gz", ".tgz")


def pack(
    store: Store | Path | str,
    out: Path | str,
    checkpoints: bool = False,
    force: bool = False,
    say: Say = print,
    config_dir: Path | str | None = None,
) -> Path:
    """Write one archive with the records, the report and the configs of a store.

    Args:
        store: The store, or its folder.
        out: The archive, which ends in ``.tar.gz`` or ``.tgz``.
        checkpoints: Also pack the checkpoints of the runs.
        force: Replace an archive that exists.
        say: Receives each line meant for the user.
        config_dir: Folder with the config groups of user-defined components, if the runs use any.

    Returns:
        The archive.

    Raises:
        UserError: The store does not exist or has no finished run; ``out`` exists, is inside the
            store, or has another suffix; or a component's config file or module is not found.
        NormbenchError: A file cannot be read or written; no archive is left behind.
    """
    store, out = as_store(store), files.expand_user(out)
    name = _name(store, out, force)
    group_options(config_dir)  # refuse a missing folder before the runs are read
    runs = _runs(store, say)
    components = _own(runs, config_dir, say)
    with tempfile.TemporaryDirectory(prefix="normbench-pack-") as folder:
        contents: dict[str, Path | bytes] = {
            **_records(store, runs, checkpoints),
            **_environment(runs),
            **_report(store, Path(folder)),
            **components.files,
        }
        contents["README.md"] = _readme(
            name, runs, components, "requirements.lock" in contents
        ).encode()
        contents[MANIFEST] = _manifest(contents)
        files.write_atomic(out, lambda file: _write(file, name, contents))
    megabytes = out.stat().st_size / 1e6
    say(f"pack: {out} ({counted(len(runs), 'run')}, {counted(len(contents), 'file')}, "
        f"{megabytes:.1f} MB)")  # fmt: skip
    return out


def _name(store: Store, out: Path, force: bool) -> str:
    """Return the name of the folder in the archive; refuse an ``out`` that cannot be written."""
    ending = next((suffix for suffix in _ENDINGS if out.name.endswith(suffix)), "")
    name = out.name.removesuffix(ending)
    if not ending or not name:
        raise UserError(f"--out {str(out)!r}: name a file that ends in .tar.gz, as paper.tar.gz")
    if not store.root.is_dir():
        raise UserError(f"there is no store {str(store.root)!r}: no such folder")
    if store.root.resolve() in out.resolve().parents:
        raise UserError(f"--out {str(out)!r} is in the store {store.root}: name a file outside it")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {str(out)!r}: there is no folder {str(out.parent)!r}")
    if out.is_dir():
        raise UserError(f"cannot write {str(out)!r}: it is a folder")
    if out.exists() and not force:
        raise UserError(f"{str(out)!r} exists: --force replaces it")
    return name


def _runs(store: Store, say: Say) -> list[Run]:
    """Return the runs to pack, and report those that are left out."""
    runs, statuses = [], []
    for run in store.runs():
        try:
            status = run.verify()
        except StoreError as error:
            say(f"left out: {run.name}: {' '.join(str(error).split())}")
            continue
        if status == "running":
            say(f"left out: {run.name}: it is being trained")
            continue
        runs.append(run)
        statuses.append(status)
    if not {"finished", "diverged"} & {*statuses}:
        raise UserError(f"no run in {store.root} is finished: there is nothing to pack")
    return runs


def _records(store: Store, runs: list[Run], checkpoints: bool) -> dict[str, Path | bytes]:
    """Return the records of runs, sweeps and verifications by their names in the archive."""
    contents: dict[str, Path | bytes] = {}
    for run in runs:
        for file in (*RUN_FILES, *(CHECKPOINTS if checkpoints else ())):
            if _is_plain(path := run.path / file):
                contents[f"runs/{run.name}/{file}"] = path
    for folder in sorted((store.root / SWEEPS).glob("*")):
        for file in SWEEP_FILES:
            if not folder.is_symlink() and _is_plain(path := folder / file):
                contents[f"runs/{SWEEPS}/{folder.name}/{file}"] = path
    if _is_plain(path := store.root / VERIFICATIONS):
        contents[f"runs/{VERIFICATIONS}"] = path
    return contents


@dataclass
class _Own:
    """User files and packages that the runs need.

    Attributes:
        files: Config files and modules, by their names in the archive.
        packages: Installed packages, such as ``my-norms==1.2``, which are not packed.
    """

    files: dict[str, Path] = field(default_factory=dict)
    packages: list[str] = field(default_factory=list)


def _own(runs: list[Run], config_dir: Path | str | None, say: Say) -> _Own:
    """Find the config files and modules of the user-defined components of runs.

    Raises:
        UserError: A component has no config file in ``config_dir``, or no module is found for it.
    """
    components = _Own()
    keys: set[tuple[str, Any, Any]] = set()
    for run in runs:
        config = run.config or {}
        for path, (group, spec) in recorded_components(config, f"run {run.name}"):
            key = (group, spec.get("_target_"), spec.get("name"))
            if spec and key not in keys:
                keys.add(key)
                _add(
                    components,
                    group,
                    spec,
                    f"run {run.name} names {key[1]!r} at {path}",
                    config_dir,
                )
    components.packages = sorted(set(components.packages))
    for line in _notes(runs, components.packages):
        say(f"note: {line}")
    return components


def _add(
    components: _Own, group: str, spec: Mapping[str, Any], where: str, config_dir: Path | str | None
) -> None:
    """Add the config files and modules of a component.

    Args:
        components: The object to extend.
        group: Config group, such as ``norm`` or ``norm/weight``.
        spec: The keys of the component in the config of a run.
        where: A clause that names the component and the run, for errors.
        config_dir: Folder with the user's own config groups.
    """
    target = spec.get("_target_")
    config_files = {} if config_dir is None else own_files(group, spec, config_dir)
    for (config_group, name), file in config_files.items():
        components.files[f"{OWN}/conf/{config_group}/{name}.yaml"] = file
    if not isinstance(target, str) or not is_own(target):
        return
    if not config_files:
        folders = "conf/" if config_dir is None else f"conf/ or {config_dir}"
        hint = " (--config-dir adds a folder of your own)" if config_dir is None else ""
        raise UserError(f"{where}, which no file of {group} has in {folders}{hint}")
    if package := provenance.installed_package(target):
        if package.partition("==")[0] not in provenance.PACKAGES:  # their versions are in the lock
            components.packages.append(package)
        return
    modules = provenance.code_files(target)
    if target.rpartition(".")[0] not in modules:
        raise UserError(
            f"{where}, and there is no module {target.rpartition('.')[0]!r} in {Path.cwd()} or on "
            "Python's path: start normbench in the folder that contains it"
        )
    for module, file in modules.items():
        parents = module.split(".") if file.stem == "__init__" else module.split(".")[:-1]
        components.files["/".join([OWN, *parents, file.name])] = file


def _notes(runs: list[Run], packages: list[str]) -> Iterator[str]:
    """Yield a line for everything that a verification of the archive will lack."""
    changes: Counter[str] = Counter()
    data: dict[str, None] = {}
    for run in runs:
        record = (run.meta or {}).get("own") or {}
        changes.update(provenance.own_changes(record, provenance.own_code(run.config or {})))
        data |= dict.fromkeys(name for name in record if name.startswith("data of "))
    for line, count in changes.items():
        yield f"{counted(count, 'run')} cannot be verified: {line}"
    for name in data:
        yield f"{name} is not packed: a verification reads it from its path"
    for package in packages:
        yield f"{package} is an installed package and not packed: the README names it"


def _is_plain(path: Path) -> bool:
    """Return whether a path is a file and not a link, which could lead out of the store."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _environment(runs: list[Run]) -> dict[str, Path | bytes]:
    """Return the config groups and the version lock: of the checkout, else of the runs."""
    conf = conf_dir()
    contents: dict[str, Path | bytes] = {
        f"conf/{path.relative_to(conf).as_posix()}": path for path in conf.rglob("*.yaml")
    }
    lock = Path(normbench.__file__).parent.parent / "requirements.lock"
    if lock.is_file() and not (Path(normbench.__file__).parent / "conf").is_dir():
        contents["requirements.lock"] = lock
        return contents
    versions = {
        f"{package}=={version}"
        for run in runs
        for package, version in ((run.meta or {}).get("versions") or {}).items()
        if package != "python"
    }
    contents["versions.txt"] = "".join(f"{line}\n" for line in sorted(versions)).encode()
    return contents


def _report(store: Store, folder: Path) -> dict[str, Path | bytes]:
    """Write the report, which refers to the store by its path in the archive; return its files."""
    out = folder / "report"
    report(store, out=out, say=lambda line: None, shown_as=Path("runs"))
    return {
        f"report/{path.relative_to(out).as_posix()}": path
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def _readme(name: str, runs: list[Run], components: _Own, has_lock: bool) -> str:
    install = (
        "pip install -r requirements.lock"
        if has_lock
        else "pip install -r versions.txt   # if the runs name one version of each package"
    )
    verify = "normbench verify runs --sample 5"
    rows = ""
    if components.files:
        verify = f"PYTHONPATH={OWN} {verify} --config-dir {OWN}/conf"
        rows = f"| `{OWN}/` | config files and modules of components that are not normbench's |\n"
    if components.packages:
        install += f"\n    pip install {' '.join(components.packages)}"
    return f"""\
# {name}

The records of {counted(len(runs), "run")} of normbench {normbench.__version__}, and their report.

| path | content |
| --- | --- |
| `report/index.html` | tables, figures and findings; `report/data/` has the numbers |
| `runs/` | a folder for each run: config, provenance, metrics of each epoch, results, checksums |
| `conf/` | the config groups that the commands name |
{rows}| `{"requirements.lock" if has_lock else "versions.txt"}` | versions of all packages |
| `{MANIFEST}` | checksums of all other files |

In this folder, with normbench installed:

    sha256sum --quiet --check {MANIFEST}
    {install}
    normbench list runs
    normbench report runs --out report-again
    {verify}

`normbench verify` trains runs again and compares them with the records to the last bit; it adds a
file to `runs/`, after which `{MANIFEST}` no longer lists all of them.
"""


def _manifest(contents: dict[str, Path | bytes]) -> bytes:
    lines = (f"{records.digest(_bytes(contents[name]))}  {name}\n" for name in sorted(contents))
    return "".join(lines).encode()


def _bytes(content: Path | bytes) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise files.store_error("read", content, error) from error


def _write(file: BinaryIO, folder: str, contents: dict[str, Path | bytes]) -> None:
    """Write the compressed archive.

    The gzip header contains neither name nor time.
    """
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as gzip_file,
        tarfile.open(fileobj=gzip_file, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for directory in _folders(folder, contents):
            archive.addfile(_entry(directory, tarfile.DIRTYPE, 0o755))
        for name in sorted(contents):
            data = _bytes(contents[name])
            entry = _entry(f"{folder}/{name}", tarfile.REGTYPE, 0o644)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def _folders(folder: str, contents: dict[str, Path | bytes]) -> Iterator[str]:
    """Yield the folders of the archive, each before those in it."""
    parents = {parent.as_posix() for name in contents for parent in Path(folder, name).parents}
    yield from sorted(parents - {".", "", os.sep})


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, DATE
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
