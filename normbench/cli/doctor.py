"""``normbench doctor``: check this machine and the installation, and say how to fix problems."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

import normbench
from normbench.cli import data
from normbench.cli.parser import Parser, add_config_dir
from normbench.engine import threads
from normbench.formats import size
from normbench.machine import (
    MARK,
    container_limit,
    instructions,
    is_native,
    nvidia_smi,
    processor,
)
from normbench.store.provenance import version
from normbench.store.store import Store, StoreError


def add_arguments(parser: Parser) -> None:
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    def datasets() -> list[tuple[str, str]]:
        rows = data.rows(data.sources_of(arguments.config_dir))
        return [(row["name"], row["state"]) for row in rows]

    checks = collect(datasets=datasets)
    Console().print(render(checks))
    return exit_code(checks)


State = Literal["ok", "warn", "absent", "missing"]

#: Sections whose items are not required for a run.
OPTIONAL = ("data", "extras")

#: Distribution and purpose of each extra of the package.
EXTRAS: dict[str, tuple[str, str]] = {
    "jax": ("jax", "backend=jax"),
    "ray": ("ray", "sweeps over Ray"),
    "slurm": ("submitit", "sweeps over Slurm"),
    "tfa": ("tensorflow-addons", "layers published in tensorflow-addons"),
    "tensorboard": ("tensorboard", "TensorBoard event files"),
    "mlflow": ("mlflow-skinny", "the MLflow logger"),
    "wandb": ("wandb", "the Weights & Biases logger"),
    "optuna": ("optuna", "sweep --sampler"),
    "onnx": ("tf2onnx", "export --model model.onnx"),
}

#: Instructions that decide how fast a CPU trains, as Linux names them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")

_STYLE = {"ok": "green", "warn": "yellow", "missing": "red"}


class Check(NamedTuple):
    """One finding.

    ``state`` is ``missing`` if the item cannot be used, and ``absent`` if it is not installed but
    something else takes its place.
    """

    section: str
    item: str
    state: State
    text: str


def run_probe(timeout: float = 180.0) -> dict[str, Any]:
    """Import the frameworks in a child process and return what they report.

    Args:
        timeout: Time limit of the process, in seconds.

    Returns:
        The keys of `normbench.machine.probe`, or ``{"error": reason}`` if the process was killed,
        aborted, or took too long.
    """
    root = str(Path(normbench.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.run(
            [sys.executable, "-m", "normbench.machine"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing the frameworks took more than {timeout:.0f} s"}
    for line in process.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    if process.returncode < 0:
        ending = f"killed by {signal.Signals(-process.returncode).name}"
    else:
        ending = f"exit status {process.returncode}"
    last = process.stderr.strip().splitlines()[-1:]
    return {"error": ": ".join([f"importing the frameworks ended with {ending}", *last])}


def _install(requirement: str) -> str:
    return f"pip install '{requirement}'"


def _machine() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    is_supported = sys.version_info >= (3, 11)
    yield Check(
        "machine",
        "Python",
        "ok" if is_supported else "missing",
        f"{python} ({sys.executable})"
        + ("" if is_supported else "; normbench needs 3.11 or later"),
    )
    yield Check("machine", "platform", "ok", platform.platform())
    yield Check("machine", "processor", "ok", processor())
    cores = os.cpu_count() or 1
    usable_cores = threads.cores()
    text = str(cores) if usable_cores == cores else f"{usable_cores} of {cores} may be used"
    yield Check("machine", "cores", "ok", text)
    flags = instructions()
    names = [name for name in _INSTRUCTIONS if name in flags]
    if names:
        in_software = "in software, up to ten times as slow as float32"
        note = "in hardware" if is_native("mixed_bfloat16") else in_software
        text = f"{' '.join(names)}; precision=mixed_bfloat16 runs {note}"
        yield Check("machine", "instructions", "ok", text)
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        text = "off, because TF_ENABLE_ONEDNN_OPTS=0: unset it for faster training on a CPU"
        yield Check("machine", "oneDNN", "warn", text)
    import psutil

    memory = psutil.virtual_memory()
    limit = container_limit()
    room = min(memory.available, limit) if limit else memory.available
    text = f"{size(memory.total)}, {size(memory.available)} available"
    if limit and limit < memory.total:
        text += f", this container may use {size(limit)}"
    yield Check("machine", "memory", "ok" if room >= 2 << 30 else "warn", text)
    git = shutil.which("git")
    text = git or "not installed: runs are recorded without their commit"
    yield Check("machine", "git", "ok" if git else "warn", text)


def _frameworks(probe_result: Mapping[str, Any]) -> Iterator[Check]:
    if "error" in probe_result:
        fix = _install("--force-reinstall normbench")
        yield Check("frameworks", "TensorFlow", "missing", f"{probe_result['error']}; {fix}")
        return
    for title, name in (("TensorFlow", "tensorflow"), ("Keras", "keras")):
        part = probe_result.get(name) or {"error": "not checked"}
        if "error" in part:
            installed_version = version(name)
            if name == "tensorflow" and _is_jax_alone(probe_result):
                text = f"not installed: runs need backend=jax, or {_install('normbench')}"
                yield Check("frameworks", title, "absent", text)
                continue
            if installed_version is None:
                text = f"not installed: {_install('normbench')}"
            else:
                text = f"{installed_version} does not import: {part['error']}"
            yield Check("frameworks", title, "missing", text)
            continue
        text = part["version"]
        if "backend" in part:
            text += f", backend {part['backend']}"
        yield Check("frameworks", title, "ok", f"{text} (imports in {part['seconds']:.1f} s)")


def _is_jax_alone(probe_result: Mapping[str, Any]) -> bool:
    """Return whether JAX can be used, and TensorFlow is not installed."""
    imports = "error" not in (probe_result.get("jax") or {"error": ""})
    return (
        imports
        and "error" in (probe_result.get("tensorflow") or {})
        and version("tensorflow") is None
    )


def _memory(gpu: Mapping[str, Any]) -> str:
    if gpu.get("total") is None:
        return ""
    return f", {size(gpu['total'])}, {size(gpu['free'])} free"


def _gpus(probe_result: Mapping[str, Any], driver: list[dict[str, Any]]) -> Iterator[Check]:
    nvml = probe_result.get("nvml")
    driver_gpus = nvml if isinstance(nvml, list) else driver
    is_jax_alone = _is_jax_alone(probe_result)
    title, framework = (
        ("JAX", probe_result["jax"])
        if is_jax_alone
        else ("TensorFlow", probe_result.get("tensorflow"))
    )
    framework = framework or {}
    framework_gpus = framework.get("gpus") or []
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    for index, gpu in enumerate(driver_gpus):
        yield Check("GPUs", f"driver, GPU {index}", "ok", f"{gpu['name']}{_memory(gpu)}")
    for index, gpu in enumerate(framework_gpus):
        capability = f", compute capability {gpu['capability']}" if gpu.get("capability") else ""
        yield Check("GPUs", f"{title}, GPU {index}", "ok", f"{gpu['name']}{capability}")
    if not driver_gpus and not framework_gpus:
        yield Check("GPUs", "none", "ok", "runs train on the CPU")
    elif not framework_gpus and "error" not in framework and "error" not in probe_result:
        if devices is not None and devices in ("", "-1"):
            text = f"hidden from {title} by CUDA_VISIBLE_DEVICES={devices!r}"
        elif is_jax_alone:
            text = f"not seen by JAX: {_install('jax[cuda13]')}"
        else:
            cause = "" if framework.get("cuda") else ", which is built without CUDA"
            text = f"not seen by TensorFlow{cause}: {_install('normbench[gpu]')}"
        yield Check("GPUs", title, "warn", text)


def _data(datasets: Iterable[tuple[str, str]]) -> Iterator[Check]:
    for name, state in datasets:
        if state == "missing":
            text = f"normbench data prepare {name} (or import {name} --from PATH)"
            yield Check("data", name, "missing", text)
        else:
            is_sound = state in ("ready", "built in")
            yield Check("data", name, "ok" if is_sound else "warn", state)


def _store(root: str | os.PathLike[str]) -> Iterator[Check]:
    store = Store(root)
    folder = store.root.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    exists = folder == store.root.absolute()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".normbench-") as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = f"{folder} cannot be written or locked ({error.strerror or error}): use store=PATH"
        yield Check("store", str(store.root), "missing", text)
        return
    try:
        runs, foreign = store.runs(), store.foreign()
    except StoreError as error:
        yield Check("store", str(store.root), "missing", str(error))
        return
    text = f"{len(runs)} runs" if exists else "created by the first run"
    yield Check("store", str(store.root), "ok", text)
    for path, reason in foreign[:3]:
        yield Check("store", path.name, "warn", reason)
    if len(foreign) > 3:
        yield Check("store", "others", "warn", f"{len(foreign) - 3} more that are not runs")
    free = shutil.disk_usage(folder).free
    yield Check("store", "free space", "ok" if free >= 1 << 30 else "warn", size(free))


def _extras(probe_result: Mapping[str, Any]) -> Iterator[Check]:
    for extra, (distribution, purpose) in EXTRAS.items():
        installed_version = version(distribution)
        if installed_version is None:
            if extra == "tfa" and sys.version_info >= (3, 12):
                text = f"no release for Python 3.12 or later; with 3.11, for {purpose}"
            else:
                text = f"{_install(f'normbench[{extra}]')} for {purpose}"
            yield Check("extras", extra, "missing", text)
            continue
        error = (probe_result.get(extra) or {}).get("error")
        if error and extra == "jax":
            yield Check("extras", extra, "warn", f"{installed_version} does not import: {error}")
        elif extra == "slurm" and shutil.which("sbatch") is None:
            yield Check("extras", extra, "ok", f"{installed_version}; no sbatch on this machine")
        else:
            yield Check("extras", extra, "ok", f"{installed_version}, for {purpose}")


def collect(
    store: str | os.PathLike[str] = "runs",
    datasets: Iterable[tuple[str, str]] | Callable[[], Iterable[tuple[str, str]]] = (),
    probe: Callable[[], Mapping[str, Any]] = run_probe,
    driver: Callable[[], list[dict[str, Any]]] = nvidia_smi,
) -> list[Check]:
    """Check this machine.

    Args:
        store: The store's folder, which need not exist.
        datasets: (name, state) of each data set, or a function that returns them. The states are
            ``ready``, ``built in`` and ``missing``; any other is shown as a warning.
        probe: Imports the frameworks and returns what they report.
        driver: Lists the GPUs of the driver.
    """
    with ThreadPoolExecutor(1) as other:  # importing the frameworks takes most of the time
        future = other.submit(probe)
        machine = list(_machine())
        data_and_store = [*_data(datasets() if callable(datasets) else datasets), *_store(store)]
        probe_result = future.result()
    return [
        *machine,
        *_frameworks(probe_result),
        *_gpus(probe_result, driver()),
        *data_and_store,
        *_extras(probe_result),
    ]


def lacking(checks: Iterable[Check]) -> list[Check]:
    """Return the missing items that every run needs."""
    return [item for item in checks if item.state == "missing" and item.section not in OPTIONAL]


def exit_code(checks: Iterable[Check]) -> int:
    """Return 0 if runs can be trained on this machine, else 1."""
    return 1 if lacking(checks) else 0


def render(checks: Iterable[Check]) -> Group:
    """Return the findings by section, followed by a verdict."""
    checks = list(checks)
    table = Table.grid(padding=(0, 2, 0, 0))
    for style in ("bold", "", "", ""):
        table.add_column(style=style, overflow="fold")
    last = None
    for check in checks:
        state = "absent" if check.state == "missing" and check.section in OPTIONAL else check.state
        table.add_row(
            check.section if check.section != last else "",
            Text(check.item),
            Text(state, _STYLE.get(state, "dim")),
            Text(check.text),
        )
        last = check.section
    missing_checks = lacking(checks)
    if missing_checks:
        verdict = Text("no run can train without: ", "red")
        verdict.append(", ".join(f"{check.section} {check.item}" for check in missing_checks))
    else:
        on_jax = any(check[:3] == ("frameworks", "TensorFlow", "absent") for check in checks)
        run = "a run with backend=jax" if on_jax else "a run"
        verdict = Text(f"everything {run} needs is installed", "green")
    return Group(table, Text(), verdict)
