"""Provenance: commits, versions and machine, without importing a framework."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

import normbench
from normbench import machine
from normbench.store import provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", *settings, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit: a package, a README, and an ignored folder."""
    folder = tmp_path / "project"
    (folder / "normbench").mkdir(parents=True)
    (folder / "normbench" / "__init__.py").write_text("__version__ = '0'\n")
    (folder / "README.md").write_text("hello\n")
    (folder / ".gitignore").write_text("runs/\n__pycache__/\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


@needs_git
def test_git_state_returns_the_commit_and_detects_changes(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    code = [repository / "normbench"]
    clean = {"commit": commit, "dirty": False}
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert provenance.git_state(repository) == clean
    assert provenance.git_state(repository / "normbench", code) == clean

    (repository / "runs").mkdir()
    (repository / "runs" / "a").touch()
    (repository / "notes.txt").touch()
    (repository / "normbench" / "__pycache__").mkdir()
    (repository / "normbench" / "__pycache__" / "x.pyc").touch()
    assert provenance.git_state(repository, code) == clean

    new = repository / "normbench" / "norm.py"
    new.touch()  # code that runs without being in the commit
    assert provenance.git_state(repository, code) == {"commit": commit, "dirty": True}
    assert provenance.git_state(repository) == clean
    new.unlink()

    (repository / "README.md").write_text("changed\n")
    assert provenance.git_state(repository) == {"commit": commit, "dirty": True}
    git(repository, "commit", "-qam", "second")
    state = provenance.git_state(repository)
    assert state == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}
    assert state["commit"] != commit


@needs_git
def test_git_state_before_the_first_commit_and_outside_a_repository(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None
    assert provenance.git_state(tmp_path / "nowhere") is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a").touch()
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": False}
    git(tmp_path, "add", "a")
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": True}


@needs_git
def test_git_state_works_during_another_git_command_and_ignores_git_dir(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    (repository / ".git" / "index.lock").touch()  # another git process is running
    state = provenance.git_state(repository)
    monkeypatch.delenv("GIT_DIR")
    (repository / ".git" / "index.lock").unlink()
    assert state == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) is None
    assert provenance.collect(folder=tmp_path)["git"] is None


@needs_git
def test_collect_distinguishes_working_folder_from_normbench_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "elsewhere"
    project.mkdir()
    assert "git_folder" not in provenance.collect(folder=project)
    git(project, "init", "-q")
    monkeypatch.setattr(normbench, "__file__", str(repository / "normbench" / "__init__.py"))
    head = {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}

    record = provenance.collect(folder=project)
    assert record["git"] == head
    assert record["git_folder"] == {"commit": None, "dirty": False}
    record = provenance.collect(folder=repository / "normbench")
    assert record["git"] == head
    assert "git_folder" not in record

    # Installed into an environment inside somebody's repository: not a checkout of normbench.
    installed = repository / "runs" / "site-packages" / "normbench"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    monkeypatch.setattr(normbench, "__file__", str(installed / "__init__.py"))
    record = provenance.collect(folder=repository)
    assert record["git"] is None
    assert record["git_folder"] == head


def test_collect_is_json_with_command_host_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["normbench", "run", "norm=gn"])
    record = provenance.collect()
    assert json.loads(json.dumps(record)) == record
    assert record["command"] == ["normbench", "run", "norm=gn"]
    assert provenance.collect(["a", "b"])["command"] == ["a", "b"]
    assert record["host"]
    assert record["processor"]
    versions = record["versions"]
    assert versions["normbench"] == normbench.__version__
    assert versions["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert versions["numpy"] == metadata.version("numpy")


def test_environment_variable_overrides_the_host_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NORMBENCH_HOST", "cluster")
    assert provenance.collect()["host"] == "cluster"
    monkeypatch.setenv("NORMBENCH_HOST", "")
    assert provenance.collect()["host"] == socket.gethostname()


def test_versions_accept_alternative_names_and_omit_absent_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"tensorflow-cpu": "2.21.0", "keras": "3.15.1"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    versions = provenance.versions()
    assert versions == {
        "python": versions["python"],
        "normbench": normbench.__version__,
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
    }


def test_provenance_and_store_import_no_framework() -> None:
    script = (
        "import sys; from normbench.store import provenance, store; provenance.collect(); "
        "heavy = {'tensorflow', 'keras', 'jax', 'pandas', 'hydra', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_utc_now_is_iso_8601_to_the_second() -> None:
    text = provenance.utc_now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text)
    assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads /proc/cpuinfo")
def test_processor_matches_proc_cpuinfo() -> None:
    names = re.findall(r"(?m)^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text())
    if names:
        assert machine.processor() == names[0].strip()
    else:  # some architectures list no model name
        assert machine.processor()


# --- user code and data --------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package and sibling modules, some of which the package's layer imports."""
    files = {
        "mypack/__init__.py": "",
        "mypack/layers.py": "import numpy\nfrom . import formulas\nfrom .deep.more import X\n"
        "class Layer: ...\n",
        "mypack/formulas.py": "def f():\n    import beside\n",
        "mypack/deep/__init__.py": "from ..base import Y\n",
        "mypack/deep/more.py": "X = 1\n",
        "mypack/base.py": "Y = 2\n",
        "mypack/unused.py": "",
        "beside.py": "",
        "other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    provenance._spec.cache_clear()
    yield tmp_path
    provenance._spec.cache_clear()
    provenance.code_hash.cache_clear()


def test_code_hash_covers_imports_from_the_same_project(project: Path) -> None:
    def version() -> str | None:
        provenance.code_hash.cache_clear()
        return provenance.code_hash("mypack.layers.Layer")

    imported = {
        "mypack", "mypack.layers", "mypack.formulas", "mypack.deep", "mypack.deep.more",
        "mypack.base", "beside",
    }  # fmt: skip
    assert set(provenance._project_files("mypack.layers")) == imported
    first = version()
    for name in ("mypack/unused.py", "other.py"):
        (project / name).write_text("changed = True\n")
        assert version() == first
    seen = {first}
    for name in ("layers", "formulas", "deep/__init__", "deep/more", "base", "../beside"):
        file = project / "mypack" / f"{name}.py"
        file.write_text(file.read_text() + "# edited\n")
        seen.add(version())
    assert len(seen) == 7
    assert "mypack" not in sys.modules  # found, not imported


def test_code_hash_does_not_depend_on_the_location(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = provenance.code_hash("mypack.layers.Layer")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(project, elsewhere)
    monkeypatch.syspath_prepend(str(elsewhere))
    provenance._spec.cache_clear()
    provenance.code_hash.cache_clear()
    assert str(elsewhere) in str(provenance._project_files("mypack.layers")["mypack.layers"])
    assert provenance.code_hash("mypack.layers.Layer") == here


def test_code_in_the_working_folder_has_a_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console script adds the working folder to ``sys.path`` only to look up a component."""
    (tmp_path / "working_layers.py").write_text("class Layer: ...\n")
    monkeypatch.chdir(tmp_path)
    without = [path for path in sys.path if path not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", without)
    norm = {"norm": {"_target_": "working_layers.Layer"}}
    assert list(provenance.own_code(norm)) == ["working_layers.Layer"]
    assert provenance.own_code({"norm": {"_target_": "sys.exit"}}) == {}  # built in: no file


def test_imports_of_installed_packages_stay_within_the_package() -> None:
    tops = {name.partition(".")[0] for name in provenance._project_files("rich.text")}
    assert tops == {"rich"}


def test_user_components_except_loggers_have_a_hash(project: Path) -> None:
    layer = {"_target_": "mypack.layers.Layer"}
    config = {
        "arch": {"_target_": "beside.build"},
        "norm": {"_target_": "normbench.norms.batch.BatchNormalization", "bfn": layer},
        "probe": {"mine": {"_target_": "other.Probe"}},
        "logger": {"mine": {"_target_": "mypack.base.Logger"}},
        "schedule": {"_target_": None},
    }
    hashes = provenance.own_code(config)
    assert list(hashes) == ["beside.build", "mypack.layers.Layer", "other.Probe"]
    assert len(set(hashes.values())) == 3


def test_code_change_is_reported_with_both_hashes() -> None:
    now = {"a.B": "1" * 64, "a.C": "2" * 64, "a.D": "3" * 64, "a.E": "4" * 64}
    recorded = {"a.B": ["1" * 64], "a.C": ["5" * 64], "a.D": ["6" * 64, "3" * 64]}
    assert provenance.own_changes(recorded, now) == [
        "the run was trained with a.C 5555555555, this is 2222222222",
        "the run was trained with a.D 6666666666 and 3333333333, this is 3333333333",
        "the run does not record which version of a.E it was trained with",
    ]
    assert provenance.own_changes(None, {}) == []
