"""Runs with ``stream=true`` are bit-identical to runs with ``stream=false``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normbench.config import Config, compose
from normbench.engine import loop_stream
from normbench.engine.observer import Observer
from normbench.engine.reuse import WarmState
from normbench.engine.train import train
from normbench.errors import UserError
from normbench.store.store import Store
from tests.conftest import REPOSITORY
from tests.engine.tinyloop import TINY


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 160 + 40 images, with its own cache."""
    rng = np.random.default_rng(0)
    drawn: dict[str, Any] = {}
    for split, count in (("train", 200), ("test", 40)):
        labels = np.arange(count) % 4
        images = rng.integers(0, 200, (count, 8, 8, 1)) + 15 * labels[:, None, None, None]
        drawn |= {f"x_{split}": images.astype(np.uint8), f"y_{split}": labels}
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    np.savez(path, **drawn)
    return path


@pytest.fixture(autouse=True)
def cache_folder(image_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the cache next to the file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(image_file.parent))
    return image_file.parent / "normbench" / "data"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each chunk hold three steps of 16 images."""
    monkeypatch.setattr(loop_stream, "CHUNK_BYTES", 3 * 16 * 64)


@pytest.fixture
def config(image_file: Path, tmp_store: Path) -> Any:
    def make(*overrides: str) -> Config:
        data = ["dataset=npz", f"dataset.path={image_file}", "dataset.validation=40"]
        run = ["norm=bn", "batch=16", "eval_batch=16", "epochs=2", f"store={tmp_store}"]
        return compose([*data, *TINY, *run, *overrides])

    return make


@pytest.fixture(scope="module")
def warm_resident() -> WarmState:
    """The compiled loop of runs with resident images."""
    return WarmState()


@pytest.fixture(scope="module")
def warm() -> WarmState:
    """The compiled loop of streamed runs."""
    return WarmState()


@pytest.fixture(scope="module")
def resident(warm_resident: WarmState, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of a run with resident images and the given number of epochs."""
    results: dict[int, Any] = {}

    def result(config: Any, epochs: int = 2) -> Any:
        if epochs not in results:
            store = Store(tmp_path_factory.mktemp("resident"))
            chosen = config("stream=false", f"epochs={epochs}")
            results[epochs] = train(chosen, store, warm=warm_resident)
        return results[epochs]

    return result


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "normbench-read-ahead"]


def test_streamed_run_ends_with_the_weights_of_a_resident_one(
    config: Any, resident: Any, warm: WarmState
) -> None:
    streamed = train(config("stream=true"), warm=warm)
    whole = resident(config)
    assert streamed.run.name == whole.run.name
    for key in ("weights_sha256", "test_acc", "test_loss", "val_loss", "train_loss"):
        assert streamed.summary[key] == whole.summary[key]
    assert (streamed.run.meta["streamed"], whole.run.meta["streamed"]) == (True, False)
    assert not reader_threads()


def test_images_larger_than_half_of_memory_are_streamed(
    config: Any, warm: WarmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normbench.data import streaming
    from normbench.engine.setup import load_dataset

    size = 240 * 64
    for memory, is_streamed in ((2 * size, False), (2 * size - 1, True)):
        monkeypatch.setattr(streaming, "image_memory", lambda needed, memory=memory: memory)
        dataset = load_dataset(config())
        assert dataset.streamed is is_streamed
        assert isinstance(dataset.train.images, np.ndarray) is not is_streamed
    monkeypatch.setattr(streaming, "machine_memory", lambda: size - 1)
    assert load_dataset(config()).streamed
    with pytest.raises(UserError, match=r"stream=false, but mine has images of 15\.0 KiB: this"):
        load_dataset(config("stream=false"))


class Interrupted(Observer):
    """Presses Ctrl-C during the second epoch."""

    def on_progress(self, epoch: int, step: int, *others: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt


def test_interrupted_run_resumes_within_the_epoch_to_the_same_bits(
    config: Any, resident: Any, warm: WarmState
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config("stream=true"), observer=Interrupted(), warm=warm)
    run = Store(config().store).run(config())
    info = run.checkpoint_info()
    assert info is not None
    assert info["step"] % 10 == 1
    assert not reader_threads()
    resumed = train(config("stream=true"), warm=warm)
    assert resumed.summary["weights_sha256"] == resident(config).summary["weights_sha256"]


def test_killed_run_resumes_resident_to_the_same_bits(
    config: Any, resident: Any, warm_resident: WarmState
) -> None:
    chosen = config("stream=true", "epochs=40")
    run = Store(chosen.store).run(chosen)
    words = [f"store={chosen.store}", f"dataset.path={chosen.dataset['path']}", "stream=true"]
    code = (
        "import sys; from normbench.engine import loop_stream; loop_stream.CHUNK_BYTES = 3072; "
        "from normbench.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ["dataset=npz", "dataset.validation=40", "norm=bn", "batch=16", "eval_batch=16"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", *options, *TINY, "epochs=40", *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while process.poll() is None and len(run.metrics() if run.exists else []) < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    resumed = train(config("stream=false", "epochs=40"), warm=warm_resident)
    whole = resident(config, 40)
    assert resumed.run.name == run.name
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_damaged_cache_file_is_recreated(
    config: Any, resident: Any, warm: WarmState, cache_folder: Path
) -> None:
    wanted = resident(config).summary["weights_sha256"]
    chosen = config("stream=true")
    file = cache_folder / f"{chosen.dataset['content']}.arrays"
    data = file.read_bytes()
    file.unlink()  # a run maps the file: writing in place would change its images
    file.write_bytes(data[:-1])
    warm.drop_all()
    assert train(chosen, warm=warm).summary["weights_sha256"] == wanted
    assert file.read_bytes() == data


@pytest.mark.slow
def test_jax_streams_to_the_same_bits(config: Any, tmp_path: Path) -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    hashes = []
    for stream in ("true", "false"):
        chosen = config("backend=jax", f"stream={stream}", f"store={tmp_path / stream}")
        words = [f"store={chosen.store}", f"dataset.path={chosen.dataset['path']}"]
        options = ["dataset=npz", "dataset.validation=40", "norm=bn", "batch=16", "eval_batch=16"]
        done = subprocess.run(
            [sys.executable, "-m", "normbench", "run", "backend=jax", f"stream={stream}",
             *options, *TINY, "epochs=2", *words],
            cwd=REPOSITORY,
            env={**os.environ, "KERAS_BACKEND": "jax"},
            capture_output=True,
            text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        run = Store(chosen.store).run(chosen)
        meta = json.loads((run.path / "meta.json").read_bytes())
        assert meta["streamed"] is (stream == "true")
        assert run.summary is not None
        hashes.append(run.summary["weights_sha256"])
    assert hashes[0] == hashes[1]
