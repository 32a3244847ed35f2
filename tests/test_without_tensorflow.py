"""normbench with JAX but without TensorFlow: supported commands work, others are refused.

A custom import finder hides TensorFlow from child processes; the slow test installs the environment
of ``make jax``, which does not include it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import normbench

pytest.importorskip("jax", reason="JAX is not installed: pip install 'normbench[jax]'")

ROOT = Path(__file__).resolve().parent.parent

# The source of sitecustomize.py, which Python imports at startup.
SITECUSTOMIZE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {
    "tensorflow", "tensorflow_datasets", "importlib_resources", "tensorflow_metadata",
    "array_record", "tf_keras", "tensorflow_addons", "tensorboard", "torch",
}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        hidden = (context.name or "").replace("-", "_") in HIDDEN
        return iter(()) if hidden else super().find_distributions(context)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
SMALL = (
    *("dataset=digits", "dataset.train_size=640", "dataset.validation=200", "arch=resnet8"),
    *("arch.width=8", "batch=64", "epochs=1"),
)
REFUSED = (
    "backend=tensorflow (the default) needs TensorFlow, which is not installed: use backend=jax, "
    "or pip install normbench"
)


class Installation:
    """An installation of normbench without TensorFlow, and a folder to work in.

    Args:
        python: The interpreter, with its options.
        folder: The folder in which commands run.
        path: PYTHONPATH of the commands.
    """

    def __init__(self, python: Sequence[str], folder: Path, path: str = "") -> None:
        self.python, self.folder = [*python], folder
        unset = ("KERAS_BACKEND", "NORMBENCH_STORE", "PYTHONPATH")
        self.environment = {key: value for key, value in os.environ.items() if key not in unset}
        self.environment |= {"TFDS_DATA_DIR": str(folder / "data"), "COLUMNS": "200"}
        if path:
            self.environment["PYTHONPATH"] = path

    def execute(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.python, *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def normbench(self, *words: str, **environment: str) -> str:
        """Return the output of a command that succeeds."""
        done = self.execute("-m", "normbench", *words, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refusal(self, *words: str, **environment: str) -> str:
        """Return the one line of a command that is refused."""
        done = self.execute("-m", "normbench", *words, **environment)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        return line.removeprefix("normbench: ")


def install_by_hiding(folder: Path) -> Installation:
    (folder / "hiding").mkdir()
    (folder / "hiding" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(folder / "hiding"), str(ROOT)])
    return Installation([sys.executable], folder, path)


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    return install_by_hiding(tmp_path)


@pytest.fixture(scope="module")
def installation_with_runs(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Return an installation whose store has a run and a sweep over two seeds."""
    installation = install_by_hiding(tmp_path_factory.mktemp("used"))
    train(installation)
    return installation


def train(installation: Installation) -> None:
    installation.normbench("run", *SMALL, "backend=jax", "norm=bn")
    words = ("norm=gn", "seed=0,1", "executor.workers=1")
    printed = installation.normbench("sweep", *SMALL, "backend=jax", *words)
    assert "2 runs: 2 trained" in printed


def check_results(installation: Installation) -> None:
    """Check the runs of :func:`train`, their list and their report."""
    listed = json.loads(installation.normbench("list", "--json"))
    assert [(row["norm"], row["status"]) for row in listed].count(("gn", "finished")) == 2
    assert len(listed) == 3
    installation.normbench("report", "runs", "--out", "report")
    assert (installation.folder / "report" / "index.html").is_file()
    assert list((installation.folder / "report").rglob("*.svg"))
    meta = json.loads(next((installation.folder / "runs").glob("*-bn-*/meta.json")).read_text())
    assert meta["versions"]["jax"]
    assert "tensorflow" not in meta["versions"]


@pytest.mark.parametrize("module", ["tensorflow", "tensorflow_datasets", "tensorboard"])
def test_module_is_hidden(installed: Installation, module: str) -> None:
    done = installed.execute("-c", f"import {module}")
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: No module named '{module}'"


def test_run_sweep_list_and_report_work(installation_with_runs: Installation) -> None:
    check_results(installation_with_runs)


def test_trained_network_can_be_exported_and_diagnosed(
    installation_with_runs: Installation,
) -> None:
    [run] = installation_with_runs.folder.glob("runs/*-bn-*")
    assert "model.keras" in installation_with_runs.normbench(
        "export", run.name, "--model", "model.keras"
    )
    assert "train_gap" in installation_with_runs.normbench(
        "diagnose", run.name, "--probe", "train_gap"
    )
    line = installation_with_runs.refusal(
        "export", run.name, "--model", "model", "--format", "savedmodel"
    )
    assert line.endswith("needs tensorflow to write the format savedmodel: pip install tensorflow")


@pytest.mark.parametrize(
    "words",
    [("run",), ("run", "backend=tensorflow"), ("show",)],
    ids=" ".join,
)
def test_default_backend_is_refused_in_one_line(
    installed: Installation, words: tuple[str, ...]
) -> None:
    assert installed.refusal(*words, *SMALL) == REFUSED
    assert not (installed.folder / "runs").exists()


@pytest.mark.parametrize("executor", ["local", pytest.param("inline", marks=pytest.mark.slow)])
def test_sweep_on_the_default_backend_is_refused_in_one_line(
    installed: Installation, executor: str
) -> None:
    line = installed.refusal("sweep", *SMALL, "norm=gn,bn", f"executor={executor}")
    assert line == f"2 runs cannot be trained: {REFUSED}"
    assert not (installed.folder / "runs").exists()


@pytest.mark.slow
def test_tensorflow_run_can_be_reported_and_exported_but_not_retrained(
    tmp_path: Path,
) -> None:
    with_tensorflow = Installation([sys.executable], tmp_path, str(ROOT))
    with_tensorflow.normbench("run", *SMALL, "norm=gn")
    without_tensorflow = install_by_hiding(tmp_path)
    [name] = (run.name for run in tmp_path.glob("runs/*-gn-*"))
    assert "already finished" in without_tensorflow.normbench("run", *SMALL, "norm=gn")
    without_tensorflow.normbench("report", "runs", "--out", "report")
    needs = "backend=tensorflow needs TensorFlow, which is not installed:"
    line = without_tensorflow.refusal("diagnose", name, "--probe", "train_gap")
    assert line == f"{needs} pip install normbench"
    words = ("export", name, "--model", "model.keras")
    line = without_tensorflow.refusal(*words)
    assert line == f"{needs} set KERAS_BACKEND=jax, or pip install normbench"
    assert "export: model.keras" in without_tensorflow.normbench(*words, KERAS_BACKEND="jax")
    # An earlier run of the same network does not prove that it can be trained here.
    line = without_tensorflow.refusal("sweep", *SMALL, "norm=gn", "seed=1,2")
    assert line == f"2 runs cannot be trained: {REFUSED}"
    done = without_tensorflow.execute("-m", "normbench", "verify", "runs")
    assert done.returncode == 1
    assert f"{name}: cannot be trained again: {needs} pip install normbench" in done.stdout


def test_tensorflow_datasets_are_refused_in_one_line(installed: Installation) -> None:
    (installed.folder / "images").mkdir()
    for words in (
        ("prepare", "cifar10"),
        ("prepare", "tfds:mnist"),
        ("import", "mnist", "--from", "images"),
    ):
        line = installed.refusal("data", *words)
        assert line.startswith("tensorflow-datasets is needed to ")
        assert "is not installed: pip install normbench" in line
    assert "cifar10" in installed.normbench("data", "list")


def test_doctor_finds_everything_that_a_run_needs(installed: Installation) -> None:
    lines = installed.normbench("doctor").splitlines()
    assert lines[-1] == "everything a run with backend=jax needs is installed"
    [frameworks] = [line for line in lines if line.startswith("frameworks")]
    assert " absent " in frameworks
    assert "TensorFlow" in frameworks


@pytest.mark.slow
def test_make_jax_creates_an_environment_that_trains(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    name = f"normbench-{normbench.__version__}"
    subprocess.run(["tar", "-xzf", f"{name}.tar.gz"], cwd=tmp_path, check=True)
    checkout = tmp_path / name
    done = subprocess.run(
        ["make", "jax", f"PYTHON={sys.executable}"], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    installed = Installation([str(checkout / ".venv-jax" / "bin" / "python")], tmp_path)
    assert installed.execute("-c", "import tensorflow").returncode == 1
    train(installed)
    check_results(installed)
    assert installed.refusal("run", *SMALL) == REFUSED
    assert "everything a run with backend=jax needs is installed" in installed.normbench("doctor")
