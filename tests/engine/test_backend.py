"""Starting a backend, in subprocesses."""

from __future__ import annotations

import subprocess
import sys

import keras
import pytest

from normbench.engine import backend
from normbench.errors import UserError
from tests.marks import slow

START = """
import sys
from normbench.engine import backend
backend.start("tensorflow", "float32")
print(*sorted(name for name in %r if name in sys.modules))
import pandas, sklearn, matplotlib
import keras
print(keras.layers.Dense(2)(pandas.DataFrame([[1.0, 2.0]]).to_numpy()).shape)
"""
PACKAGES = ("jax", "matplotlib", "pandas", "sklearn")


def start_backend(*first: str) -> list[str]:
    code = "\n".join(first) + START % (PACKAGES,)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts TensorFlow")
def test_unused_packages_are_not_imported_but_remain_importable():
    assert start_backend() == ["", "(1, 2)"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts TensorFlow")
@pytest.mark.parametrize(
    ("statement", "package"),
    [("import pandas", "pandas"), slow("import sys; sys.ps1 = '>>> '", "sklearn")],
    ids=["imported", "prompt"],
)
def test_imported_packages_and_interactive_sessions_are_left_alone(statement, package):
    assert package in start_backend(statement)[0]


@pytest.mark.parametrize(
    ("machine", "given", "setting"),
    [
        ("x86_64", {}, "1"),
        ("AMD64", {}, "1"),
        ("x86_64", {"TF_ENABLE_ONEDNN_OPTS": "0"}, "0"),
        ("aarch64", {}, None),
    ],
)
def test_tensorflow_uses_onednn_on_any_x86_processor(machine, given, setting, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    environment = dict(given)
    backend.prepare(environment)
    assert environment.get("TF_ENABLE_ONEDNN_OPTS") == setting
    assert environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def test_what_an_imported_tensorflow_uses_is_left_to_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    environment = {}
    backend.prepare(environment)
    assert "TF_ENABLE_ONEDNN_OPTS" not in environment


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            ["tensorflow"],
            "backend=tensorflow (the default) needs TensorFlow, which is not installed: use "
            "backend=jax, or pip install normbench",
        ),
        (
            ["tensorflow", "jax"],
            "backend=tensorflow (the default) needs TensorFlow, which is not installed: pip "
            "install normbench",
        ),
        (
            ["jaxlib"],
            "backend=jax needs JAX, which is not installed: use backend=tensorflow, or pip install "
            "'normbench[jax]'",
        ),
    ],
    ids=["no TensorFlow", "neither", "half of JAX"],
)
def test_missing_backend_is_refused(missing, message, monkeypatch):
    monkeypatch.setattr(backend, "_is_there", lambda package: package not in missing)
    refused = "jax" if missing == ["jaxlib"] else "tensorflow"
    with pytest.raises(UserError) as error:
        backend.refuse_missing(refused, backend.OTHER)
    assert str(error.value) == message


def test_leftover_folder_of_an_uninstalled_package_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "leftover" / "data").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not backend._is_there("leftover")
    assert backend._is_there("filelock")
    assert not backend._is_there("no_such_package")
