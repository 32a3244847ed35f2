"""``normbench doctor`` on good, bare and broken machines: findings and remedies."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from normbench import machine
from normbench.cli import doctor
from normbench.cli.doctor import Check, collect, exit_code, lacking, render, run_probe
from normbench.store import provenance
from normbench.store.store import Store

GOOD: dict[str, Any] = {
    "nvml": {"error": "ModuleNotFoundError: No module named 'pynvml'", "seconds": 0.0},
    "tensorflow": {"version": "2.21.0", "cuda": False, "gpus": [], "seconds": 8.0},
    "keras": {"version": "3.15.1", "backend": "tensorflow", "seconds": 0.1},
    "jax": {"version": "0.10.2", "seconds": 1.0},
}
H100 = {"name": "NVIDIA H100 80GB HBM3", "total": 81559 << 20, "free": 80000 << 20}


def checks_of(
    store: Path, found: dict[str, Any] | None = None, driver: Any = None, datasets: Any = ()
) -> dict[tuple[str, str], Check]:
    """Return the checks of a machine whose frameworks report ``found``, by section and item."""
    checks = collect(store, datasets, lambda: found or GOOD, lambda: driver or [])
    by_item = {(check.section, check.item): check for check in checks}
    assert len(by_item) == len(checks)
    assert all(check.text and "\n" not in check.text for check in checks)
    return by_item


def rendered(checks: list[Check], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(checks))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_good_machine_passes(tmp_store: Path) -> None:
    checks = checks_of(tmp_store)
    assert exit_code(checks.values()) == 0
    assert checks["frameworks", "TensorFlow"].text == "2.21.0 (imports in 8.0 s)"
    assert checks["frameworks", "Keras"].text == "3.15.1, backend tensorflow (imports in 0.1 s)"
    assert checks["GPUs", "none"] == Check("GPUs", "none", "ok", "runs train on the CPU")
    here = ".".join(map(str, sys.version_info[:3]))
    assert checks["machine", "Python"].text == f"{here} ({sys.executable})"
    assert checks["machine", "processor"].text == machine.processor()
    assert "GiB" in checks["machine", "memory"].text
    text = rendered(list(checks.values()))
    assert text.rstrip().endswith("everything a run needs is installed")
    sections = [line.split()[0] for line in text.splitlines()[:-2] if line[:1].strip()]
    assert sections == ["machine", "frameworks", "GPUs", "store", "extras"]  # once each


def test_frameworks_that_fail_to_import_are_missing_with_the_reason(
    tmp_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**GOOD, "tensorflow": {"error": "ImportError: libcublas.so.12", "seconds": 1.0}}
    monkeypatch.setattr(doctor, "version", lambda name: "2.21.0" if name == "tensorflow" else None)
    checks = checks_of(tmp_store, broken)
    tensorflow = checks["frameworks", "TensorFlow"]
    assert tensorflow.state == "missing"
    assert tensorflow.text == "2.21.0 does not import: ImportError: libcublas.so.12"
    assert exit_code(checks.values()) == 1
    assert lacking(checks.values()) == [tensorflow]
    last = rendered(list(checks.values())).rstrip().splitlines()[-1]
    assert last == "no run can train without: frameworks TensorFlow"

    bare = {**GOOD, "keras": {"error": "ModuleNotFoundError: No module named 'keras'"}}
    keras = checks_of(tmp_store, bare)["frameworks", "Keras"]
    assert keras.state == "missing"
    assert keras.text == "not installed: pip install 'normbench'"


def test_jax_suffices_where_tensorflow_is_not_installed(
    tmp_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor, "version", {"keras": "3.15.1", "jax": "0.10.2"}.get)
    found: dict[str, Any] = {
        **GOOD,
        "tensorflow": {"error": "ModuleNotFoundError: No module named 'tensorflow'"},
        "keras": {"version": "3.15.1", "backend": "jax", "seconds": 0.1},
        "jax": {"version": "0.10.2", "gpus": [], "seconds": 1.0},
    }
    checks = checks_of(tmp_store, found)
    assert checks["frameworks", "TensorFlow"] == Check(
        *("frameworks", "TensorFlow", "absent"),
        "not installed: runs need backend=jax, or pip install 'normbench'",
    )
    assert exit_code(checks.values()) == 0
    last = rendered(list(checks.values())).rstrip().splitlines()[-1]
    assert last == "everything a run with backend=jax needs is installed"
    assert checks["GPUs", "none"].text == "runs train on the CPU"

    check = checks_of(tmp_store, found, [H100])["GPUs", "JAX"]
    assert (check.state, check.text) == ("warn", "not seen by JAX: pip install 'jax[cuda13]'")
    seen = {**found, "jax": {**found["jax"], "gpus": [{"name": "H100", "capability": "9.0"}]}}
    checks = checks_of(tmp_store, seen, [H100])
    assert checks["GPUs", "JAX, GPU 0"].text == "H100, compute capability 9.0"

    neither = {**found, "jax": {"error": "ModuleNotFoundError: No module named 'jax'"}}
    checks = checks_of(tmp_store, neither)
    assert checks["frameworks", "TensorFlow"].state == "missing"
    assert exit_code(checks.values()) == 1


def test_frameworks_that_crash_the_process_are_missing(tmp_store: Path) -> None:
    checks = checks_of(tmp_store, {"error": "importing the frameworks ended with killed by SIGILL"})
    assert "SIGILL" in checks["frameworks", "TensorFlow"].text
    assert exit_code(checks.values()) == 1
    assert checks["GPUs", "none"].state == "ok"


def test_gpus_are_listed_with_their_memory(tmp_store: Path) -> None:
    seen = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0"}
    found = {**GOOD, "tensorflow": {**GOOD["tensorflow"], "cuda": True, "gpus": [seen]}}
    checks = checks_of(tmp_store, found, [H100])
    assert checks["GPUs", "driver, GPU 0"].text == "NVIDIA H100 80GB HBM3, 79.6 GiB, 78.1 GiB free"
    assert checks["GPUs", "TensorFlow, GPU 0"].text == f"{H100['name']}, compute capability 9.0"
    assert ("GPUs", "TensorFlow") not in checks
    both = checks_of(tmp_store, {**found, "nvml": [H100, H100]})
    assert both["GPUs", "driver, GPU 1"].text.startswith("NVIDIA H100 80GB HBM3, 79.6 GiB")


def test_gpu_that_tensorflow_does_not_see_is_a_warning_with_the_remedy(
    tmp_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check = checks_of(tmp_store, driver=[H100])["GPUs", "TensorFlow"]
    assert check.state == "warn"
    assert "built without CUDA: pip install 'normbench[gpu]'" in check.text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    check = checks_of(tmp_store, driver=[H100])["GPUs", "TensorFlow"]
    assert check.text == "hidden from TensorFlow by CUDA_VISIBLE_DEVICES='-1'"


def test_nvidia_smi_is_read_and_may_be_absent_or_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.nvidia_smi() == []
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 80000'\necho 'Tesla, X, [N/A], [N/A]'\n"
    )
    program.chmod(0o755)
    assert doctor.nvidia_smi() == [H100, {"name": "Tesla, X", "total": None, "free": None}]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert doctor.nvidia_smi() == []


def test_missing_data_sets_are_optional_and_say_how_to_get_them(tmp_store: Path) -> None:
    states = [("cifar10", "missing"), ("digits", "built in"), ("mnist", "ready")]
    states.append(("cifar100", "damaged: train.npy is short"))
    checks = checks_of(tmp_store, datasets=lambda: states)
    assert [checks["data", name].state for name, _ in states] == ["missing", "ok", "ok", "warn"]
    text = checks["data", "cifar10"].text
    assert text == "normbench data prepare cifar10 (or import cifar10 --from PATH)"
    assert exit_code(checks.values()) == 0
    assert "absent" in rendered(list(checks.values()))
    listed = checks_of(tmp_store, datasets=states)  # a list works, too
    assert [check for key, check in listed.items() if key[0] == "data"] == [
        checks["data", name] for name, _ in states
    ]


def test_extras_name_their_install_command(
    tmp_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"jax": "0.10.2", "submitit": "1.5.3"}
    monkeypatch.setattr(doctor, "version", installed.get)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    broken = {**GOOD, "jax": {"error": "ImportError: jaxlib is too old"}}
    checks = checks_of(tmp_store, broken)
    assert checks["extras", "ray"] == Check(
        "extras", "ray", "missing", "pip install 'normbench[ray]' for sweeps over Ray"
    )
    assert checks["extras", "jax"].state == "warn"
    assert checks["extras", "jax"].text.endswith("does not import: ImportError: jaxlib is too old")
    assert checks["extras", "slurm"].text == "1.5.3; no sbatch on this machine"
    assert checks["machine", "git"].state == "warn"
    assert exit_code(checks.values()) == 0
    if sys.version_info >= (3, 12):
        assert "no release for Python 3.12" in checks["extras", "tfa"].text
    else:
        assert "pip install 'normbench[tfa]'" in checks["extras", "tfa"].text


def test_the_doctor_knows_the_extras_of_the_package() -> None:
    import tomllib

    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for extra, (distribution, _) in doctor.EXTRAS.items():
        assert any(line.startswith(distribution) for line in extras[extra]), extra
    assert set(extras) - set(doctor.EXTRAS) == {"gpu", "docs", "dev"}


def test_store_is_tested_by_writing_to_it(tmp_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = tmp_store / "deep" / "runs"
    assert checks_of(fresh)["store", str(fresh)].text == "created by the first run"
    assert not fresh.parent.exists()

    Store(tmp_store).run("a-3fa2b1c0").create({}, {"signature": "3fa2b1c0"})
    for index in range(5):
        (tmp_store / f"note{index}.txt").touch()
    checks = checks_of(tmp_store)
    assert checks["store", str(tmp_store)].text == "1 runs"
    assert checks["store", "note0.txt"].state == "warn"
    assert checks["store", "others"].text == "2 more that are not runs"
    assert [path.name for path in tmp_store.iterdir() if path.name.startswith(".")] == []

    file = tmp_store / "note0.txt"
    check = checks_of(file)["store", str(file)]
    assert check.state == "missing"
    assert "use store=PATH" in check.text

    def no_locks(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(doctor.fcntl, "flock", no_locks)
    checks = checks_of(tmp_store)
    assert checks["store", str(tmp_store)].state == "missing"
    assert "No locks available" in checks["store", str(tmp_store)].text
    assert exit_code(checks.values()) == 1


def test_low_memory_low_disk_and_disabled_onednn_are_warnings(
    tmp_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr(doctor, "container_limit", lambda: 1 << 30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    checks = checks_of(tmp_store)
    assert checks["machine", "memory"].state == "warn"
    assert "this container may use 1.0 GiB" in checks["machine", "memory"].text
    assert checks["store", "free space"] == Check("store", "free space", "warn", "5.0 MiB")
    assert checks["machine", "oneDNN"].state == "warn"
    assert exit_code(checks.values()) == 0


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_wraps_instead_of_truncating(tmp_store: Path, width: int) -> None:
    checks = list(checks_of(tmp_store, datasets=[("cifar10", "missing")]).values())
    text = rendered(checks, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


# --- the process that imports the frameworks ------------------------------------------------------


@pytest.fixture
def fake_frameworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose tensorflow.py, keras.py and jax.py shadow the installed ones."""
    (tmp_path / "keras.py").write_text(
        "from types import SimpleNamespace\n__version__ = '3.0'\n"
        "backend = SimpleNamespace(backend=lambda: 'jax')\n"
        "saving = SimpleNamespace(get_custom_objects=dict)\n"
    )
    (tmp_path / "jax.py").write_text("raise RuntimeError('jaxlib\\nis old')\n")
    (tmp_path / "pynvml.py").write_text("raise ImportError('none')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_probe_reports_versions_and_import_errors(fake_frameworks: Path) -> None:
    (fake_frameworks / "tensorflow.py").write_text(
        "import sys\n"
        "from types import SimpleNamespace as N\n"
        "print('noise on standard output', flush=True)\n"
        "sys.stdout.write('and no line feed')\n"
        "__version__ = '2.99'\n"
        "test = N(is_built_with_cuda=lambda: True)\n"
        "details = {'device_name': 'H100', 'compute_capability': (9, 0)}\n"
        "config = N(list_physical_devices=lambda kind: [N(name='g')],\n"
        "           experimental=N(get_device_details=lambda device: details))\n"
    )
    report = run_probe()
    assert report["tensorflow"].pop("seconds") < 5
    assert report["tensorflow"] == {
        "version": "2.99",
        "cuda": True,
        "gpus": [{"name": "H100", "capability": "9.0"}],
    }
    assert report["keras"]["backend"] == "jax"
    assert report["jax"]["error"] == "RuntimeError: jaxlib"
    assert report["nvml"]["error"] == "ImportError: none"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os, sys; print('no AVX', file=sys.stderr, flush=True); os._exit(3)", "no AVX"),
    ],
)
def test_crash_during_import_is_contained(fake_frameworks: Path, code: str, reason: str) -> None:
    (fake_frameworks / "tensorflow.py").write_text(code + "\n")
    report = run_probe()
    assert list(report) == ["error"]
    assert reason in report["error"]
    assert "\n" not in report["error"]


def test_hanging_import_is_killed(fake_frameworks: Path) -> None:
    (fake_frameworks / "tensorflow.py").write_text("import time; time.sleep(60)\n")
    began = time.monotonic()
    assert run_probe(timeout=1) == {"error": "importing the frameworks took more than 1 s"}
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_real_frameworks_are_found() -> None:
    report = run_probe()
    assert report["tensorflow"]["version"] == provenance.version("tensorflow")
    assert report["keras"]["version"] == provenance.version("keras")
    assert report["keras"]["backend"] == os.environ.get("KERAS_BACKEND", "tensorflow")
