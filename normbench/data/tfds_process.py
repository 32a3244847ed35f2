"""Run an action that needs tensorflow-datasets in a child process: :func:`run`.

This way, a run that takes its images from the array cache never imports TensorFlow for them,
importing and preparing use no GPU, and TensorFlow's log lines do not reach the terminal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import normbench
from normbench.errors import NormbenchError, UserError

_DOES = {
    "write": "write a data set",
    "prepare": "prepare a data set",
    "decode": "read a prepared data set",
    "classify": "read a prepared data set",
}
"""The actions in words, for messages."""
_TICK = 5.0
"""Seconds between two calls of ``tick``."""


def _environment() -> dict[str, str]:
    """Return the environment of the child: the same package, no GPU, few log lines."""
    package = str(Path(normbench.__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": package if not path else package + os.pathsep + path,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _reason(log: str) -> str:
    """Return the reason from a log: the exception of the last traceback, else the last line."""
    _, traceback, tail = log.rpartition("Traceback (most recent call last):\n")
    lines = [line for line in tail.splitlines() if line.strip()]
    if traceback:  # the exception's first line is the first one after the frames
        lines = [line for line in lines if not line.startswith(" ")][:1]
    return lines[-1].strip().rstrip(":") if lines else "it said nothing"


def is_installed() -> bool:
    """Return whether tensorflow-datasets and TensorFlow are installed, without importing them."""
    return all(find_spec(name) is not None for name in ("tensorflow_datasets", "tensorflow"))


def refuse_missing(action: str) -> None:
    """Refuse an action of :func:`run` if tensorflow-datasets is not installed.

    Raises:
        UserError: It is not installed.
    """
    if not is_installed():
        is_creation = action in ("prepare", "write")
        bring = ", or set TFDS_DATA_DIR to a folder of tensorflow-datasets that has it"
        raise UserError(
            f"tensorflow-datasets is needed to {_DOES[action]}, but is not installed: pip install "
            f"normbench{bring if is_creation else ''}; dataset=digits, dataset=npz and "
            "dataset=images work without it"
        )


def run(
    action: str, request: dict[str, Any], tick: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Run an action of `normbench.data.tfds_child` and return its result.

    Args:
        action: ``write``, ``prepare``, ``decode`` or ``classify``.
        request: Keyword arguments of the action, of JSON types only.
        tick: Called every few seconds while the process runs.

    Raises:
        UserError: tensorflow-datasets is not installed.
        NormbenchError: The action failed; the message has the reason given by the process.
    """
    refuse_missing(action)
    with tempfile.TemporaryDirectory(prefix="normbench-") as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        with log.open("wb") as output:
            # Its standard input is a pipe that closes when this process dies; the child then exits.
            child = subprocess.Popen(
                [sys.executable, "-m", "normbench.data.tfds_child", action, str(answer)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )
            try:
                assert child.stdin is not None
                # A child that died immediately has closed its end; its log says why.
                with suppress(BrokenPipeError):
                    child.stdin.write(json.dumps(request).encode() + b"\n")
                    child.stdin.flush()
                while True:
                    try:
                        child.wait(_TICK)
                        break
                    except subprocess.TimeoutExpired:
                        if tick is not None:
                            tick()
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
                if child.stdin is not None:
                    with suppress(BrokenPipeError):
                        child.stdin.close()
        if answer.is_file():
            response = json.loads(answer.read_bytes())
            if "error" in response:
                raise (UserError if response["user"] else NormbenchError)(response["error"])
            return response["result"]
        raise NormbenchError(
            f"tensorflow-datasets could not {action} the data set (exit {child.returncode}): "
            f"{_reason(log.read_text(errors='replace'))}"
        )
