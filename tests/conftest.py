"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

from normbench.engine import backend

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# XLA compiles each of many small programs once: quick to compile is what is wanted.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # whatever a keras.json at home says

backend.prepare(os.environ)  # as a run does, because tests compare bits with runs

os.environ.pop("NORMBENCH_STORE", None)

# A suite started in the background by a script would make its child processes ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Start the backend as a run does, if tests need one, before any of them computes.

    Tests compare runs of this process with runs of other processes bit for bit. The bits depend on
    how TensorFlow's threads are divided, which is decided only once per process.
    """
    if "keras" in sys.modules:
        from normbench.engine import threads

        record = backend.start(os.environ["KERAS_BACKEND"], "float32")
        assert threads.are_divided(record["shards"]), "a test module computes as it is imported"
    # Modules stay alive: do not let each garbage collection scan all of TensorFlow again.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with the genuine MNIST and CIFAR-10 files, or skip the test."""
    named = os.environ.get("NORMBENCH_TEST_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "mnist").is_dir() or not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip(
            f"no genuine data in {folder}: set NORMBENCH_TEST_DATA to a folder with "
            "mnist/ and cifar-10-batches-py/"
        )
    return folder


@pytest.fixture
def tmp_store(tmp_path: Path) -> Path:
    """Return an empty folder for a store of runs."""
    store = tmp_path / "runs"
    store.mkdir()
    return store
