"""Packaging: the sdist, the wheel, declared dependencies and the lock files are complete."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import normbench

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONF = {file.relative_to(ROOT / "conf").as_posix() for file in (ROOT / "conf").rglob("*.yaml")}
LOCKS = ("requirements-build.lock", "requirements.lock", "requirements-jax.lock")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    """Return a folder with the unpacked wheel, laid out as an installer would."""
    folder = built / "unpacked"
    with zipfile.ZipFile(built / f"normbench-{normbench.__version__}-py3-none-any.whl") as wheel:
        wheel.extractall(folder)
    return folder


def composed_run_name(path: Path) -> list[str]:
    """Compose a run with the package found in ``path``; return its origin, conf folder and run."""
    code = (
        "import normbench\n"
        "from normbench import config\n"
        "print(normbench.__file__)\n"
        "print(config.conf_dir())\n"
        "print(config.compose(['dataset=digits', 'norm=gn_ws', 'batch=16']).run_name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_sdist_contains_everything_a_checkout_needs(built: Path) -> None:
    prefix = f"normbench-{normbench.__version__}"
    with tarfile.open(built / f"{prefix}.tar.gz") as sdist:
        names = {name.removeprefix(f"{prefix}/") for name in sdist.getnames()}
    expected = {"LICENSE", "README.md", "Makefile", "pyproject.toml", "tests/conftest.py", *LOCKS}
    assert expected | {f"conf/{name}" for name in CONF} <= names
    assert not {name for name in names if name.startswith("runs/")}


def test_wheel_contains_conf_and_nothing_besides_the_package(unpacked: Path) -> None:
    conf = unpacked / "normbench" / "conf"
    assert CONF
    assert {file.relative_to(conf).as_posix() for file in conf.rglob("*.yaml")} == CONF
    for name in CONF:
        assert (conf / name).read_bytes() == (ROOT / "conf" / name).read_bytes(), name
    top = {entry.name for entry in unpacked.iterdir()}
    assert top == {"normbench", f"normbench-{normbench.__version__}.dist-info"}


def test_wheel_contains_every_module(unpacked: Path) -> None:
    for file in (ROOT / "normbench").rglob("*.py"):
        assert (unpacked / file.relative_to(ROOT)).is_file(), file


def test_installed_wheel_composes_from_its_own_conf(unpacked: Path) -> None:
    origin, conf, run_name = composed_run_name(unpacked)
    assert Path(origin) == unpacked / "normbench" / "__init__.py"
    assert Path(conf) == unpacked / "normbench" / "conf"
    origin, conf, same = composed_run_name(ROOT)
    assert Path(origin) == ROOT / "normbench" / "__init__.py"
    assert Path(conf) == ROOT / "conf"
    assert same == run_name


def test_wheel_names_the_console_script_and_the_license(unpacked: Path) -> None:
    metadata = unpacked / f"normbench-{normbench.__version__}.dist-info"
    assert "normbench = normbench.cli:entry" in (metadata / "entry_points.txt").read_text()
    assert "License-Expression: Apache-2.0" in (metadata / "METADATA").read_text()
    assert (metadata / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def requirements(*extras: str) -> list[Requirement]:
    """Return the declared requirements including ``extras``, without normbench itself."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    parsed = [Requirement(line) for line in lines]
    return [requirement for requirement in parsed if requirement.name != PROJECT["name"]]


def imported_modules() -> dict[str, Path]:
    """Return the third-party modules that the package imports, each with a file that imports it."""
    found: dict[str, Path] = {}
    for file in (ROOT / "normbench").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            found.update({name.partition(".")[0]: file for name in names})
    outside = set(found) - set(sys.stdlib_module_names) - {"normbench"}
    return {name: found[name] for name in outside}


def test_every_import_is_declared() -> None:
    declared = {
        canonicalize_name(requirement.name)
        for requirement in requirements(*PROJECT["optional-dependencies"])
    }
    installed = packages_distributions()
    undeclared = {
        module: file.relative_to(ROOT).as_posix()
        for module, file in imported_modules().items()
        if not declared & {canonicalize_name(name) for name in installed.get(module, [module])}
    }
    assert undeclared == {}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_by_hash_and_contains_no_urls_or_paths(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"://|file:|--(extra-)?index|--find-links| @ |(^|\s)/", text)
    pins = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert len(pins) > 3
    for pin in pins:
        assert re.match(r"[a-z0-9._-]+==[^\s;]+", pin), pin
        assert "--hash=sha256:" in pin, pin


def pins(*names: str) -> dict[str, set[str]]:
    """Return the versions that lock files pin, by package."""
    pinned: dict[str, set[str]] = {}
    for lock in names:
        text = (ROOT / lock).read_text()
        for name, version in re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE):
            pinned.setdefault(canonicalize_name(name), set()).add(version)
    return pinned


def test_lock_satisfies_the_declared_requirements() -> None:
    pinned = pins("requirements-build.lock", "requirements.lock")
    for requirement in requirements("dev", "jax"):
        versions = pinned.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name} is not in the lock: run make lock"
        assert all(requirement.specifier.contains(version) for version in versions), (
            requirement,
            versions,
        )


def test_jax_lock_omits_tensorflow_and_pins_the_same_versions() -> None:
    [listed] = re.findall(r"^NOT_FOR_JAX := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    left_out = {canonicalize_name(name) for name in listed.split()}
    pinned = pins("requirements-jax.lock")
    assert {"tensorflow", "tensorflow-datasets"} <= left_out
    assert not any(name.startswith(("tensorflow", "tensorboard")) for name in pinned)
    declared = {canonicalize_name(requirement.name) for requirement in requirements("jax")}
    assert left_out <= declared
    assert declared - left_out == declared & set(pinned)
    all_pins = pins("requirements.lock")
    assert {name: all_pins[name] for name in pinned} == pinned
