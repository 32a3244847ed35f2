"""How many threads a process has, and how they are divided."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import pytest

from normbench.engine import threads
from tests.marks import slow

ASKED = """
from normbench.engine import backend
record = backend.start("tensorflow", "float32")
import tensorflow as tf
config = tf.config.threading
print(record["threads"], config.get_intra_op_parallelism_threads(),
      config.get_inter_op_parallelism_threads())
"""


@pytest.mark.parametrize(
    ("count", "shards"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (8, 4), (16, 4), (96, 4)]
)
def test_shards_divide_the_threads(count, shards):
    assert threads.shards(count) == shards


def test_limit_in_the_environment_applies(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    assert threads.available() == 3
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "0")
    assert threads.available() == threads.cores() >= 1


def ask(count: int, first: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TF_NUM_INTRAOP_THREADS": str(count)}
    return subprocess.run(
        [sys.executable, "-c", first + ASKED],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts TensorFlow")
@pytest.mark.parametrize(("count", "settings"), [slow(1, "1 0 0"), (8, "8 2 4")])
def test_tensorflow_divides_its_threads_among_shards(count, settings):
    done = ask(count)
    assert done.stdout.split("\n")[0] == settings
    assert "in use before" not in done.stderr


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts TensorFlow")
def test_warning_is_logged_if_tensorflow_was_already_in_use():
    done = ask(2, "import tensorflow as tf\ntf.constant(1) + 1\n")
    assert "before normbench, so its threads cannot be divided" in done.stderr
