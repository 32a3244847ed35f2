"""Provenance: commits, versions and machine, without importing a framework."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

import normbench
from normbench import provenance

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
def test_git_state_names_the_commit_and_sees_changes(repository: Path) -> None:
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
def test_git_state_leaves_the_repository_alone_and_ignores_a_hook_s_environment(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    (repository / ".git" / "index.lock").touch()  # another git is at work
    state = provenance.git_state(repository)
    monkeypatch.delenv("GIT_DIR")
    (repository / ".git" / "index.lock").unlink()
    assert state == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False}


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) is None
    assert provenance.collect(folder=tmp_path)["git"] is None


@needs_git
def test_collect_tells_the_working_folder_s_repository_from_normbench_s(
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


def test_collect_is_json_and_says_what_ran_where(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_versions_know_other_names_and_leave_out_what_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"tensorflow-cpu": "2.21.0", "keras": "3.15.1"}

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(metadata, "version", version)
    found = provenance.versions()
    assert found == {
        "python": found["python"],
        "normbench": normbench.__version__,
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
    }


def test_provenance_and_store_import_no_framework() -> None:
    script = (
        "import sys; from normbench import provenance, store; provenance.collect(); "
        "heavy = {'tensorflow', 'keras', 'jax', 'pandas', 'hydra', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)


def test_utc_now_is_iso_8601_to_the_second() -> None:
    text = provenance.utc_now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text)
    assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads /proc/cpuinfo")
def test_processor_is_the_name_the_system_shows() -> None:
    names = re.findall(r"(?m)^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text())
    if names:
        assert provenance.processor() == names[0].strip()
    else:  # an architecture that shows none
        assert provenance.processor()
