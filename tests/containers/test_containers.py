"""Container files: copied files exist, shell steps parse, and installation is by hash."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "containers"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
DEFINITION = (FOLDER / "normbench.def").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, such as ("COPY", "conf /src/conf/")."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines of each section of an Apptainer definition, and of its header as ""."""
    lines: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            lines[name] = []
        elif line.strip() and not line.startswith("#"):
            lines[name].append(line.strip())
    return lines


def copied() -> dict[str, set[str]]:
    docker = [words.split() for name, words in instructions(DOCKERFILE) if name == "COPY"]
    return {
        "Dockerfile": {source for *sources, _ in docker for source in sources},
        "normbench.def": {line.split()[0] for line in sections(DEFINITION)["files"]},
    }


@pytest.mark.parametrize("file", ["Dockerfile", "normbench.def"])
def test_copied_files_exist_and_are_in_the_repository(file: str) -> None:
    sources = copied()[file]
    assert {"requirements.lock", "normbench", "conf", "containers/install.sh"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
    if (ROOT / ".git").exists():
        tracked = subprocess.run(
            ["git", "ls-files", "--", *sources], cwd=ROOT, capture_output=True, text=True
        ).stdout.splitlines()
        for source in sources:
            assert any(name == source or name.startswith(f"{source}/") for name in tracked), source


def test_both_images_have_the_same_files() -> None:
    assert copied()["Dockerfile"] == copied()["normbench.def"]


def test_docker_context_contains_only_the_copied_files() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied()["Dockerfile"]


def steps() -> dict[str, str]:
    """Return the shell steps of the container files by name."""
    scripts = {"install.sh": (FOLDER / "install.sh").read_text()}
    runs = [words for name, words in instructions(DOCKERFILE) if name == "RUN"]
    scripts |= {f"RUN {number}": words for number, words in enumerate(runs)}
    parts = sections(DEFINITION)
    return scripts | {name: "\n".join(parts[name]) for name in ("post", "environment", "runscript")}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
@pytest.mark.parametrize("name", steps())
def test_shell_steps_parse(name: str) -> None:
    done = subprocess.run(
        ["bash", "--posix", "-n"], input=steps()[name], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_dockerfile_uses_known_instructions() -> None:
    known = {"ARG", "FROM", "COPY", "RUN", "ENV", "WORKDIR", "ENTRYPOINT"}
    assert {name for name, _ in instructions(DOCKERFILE)} == known


def test_python_of_the_images_is_supported() -> None:
    docker = re.search(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE)
    definition = re.search(r"^From: python:([\d.]+)-", DEFINITION, re.MULTILINE)
    assert docker
    assert definition
    assert docker[1] == definition[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {docker[1]}" in project["classifiers"]


def test_every_dependency_is_installed_by_hash() -> None:
    commands = [line for line in steps()["install.sh"].splitlines() if " pip install " in line]
    assert len(commands) == 3
    for command in commands:
        by_hash = "--require-hashes" in command
        assert by_hash or "--no-deps" in command  # the installation of normbench itself
        if by_hash:
            lock = re.search(r'\$source/(\S+)"', command)
            assert lock
            text = (ROOT / lock[1]).read_text()
            assert text.count("==") <= text.count("--hash=sha256:")


def test_provided_wheels_are_installed_without_an_index(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PIP_NO_INDEX|$PIP_FIND_LINKS|$*"\n')
    python.chmod(0o755)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    command = ["sh", str(FOLDER / "install.sh"), "/src", str(wheels)]

    def run() -> str:
        environment = {"PYTHON": str(python), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    assert run().startswith("||-m pip install --require-hashes -r /src/requirements-build.lock")
    (wheels / "numpy-2.0-py3-none-any.whl").touch()
    assert run().startswith(f"1|{wheels}|-m pip install --require-hashes")
