"""The child process with tensorflow-datasets: its answers and its failures."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import normbench
from normbench.data import tfds_child, tfds_process
from normbench.errors import NormbenchError


def builder(*urls: str) -> Any:
    """Return the part of a tfds builder that `_reach` uses."""
    infos = {url: SimpleNamespace(filename=url.rpartition("/")[2]) for url in urls}
    return SimpleNamespace(url_infos=infos)


@pytest.fixture
def server() -> Iterator[str]:
    """Serve /there and nothing else; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.startswith("/there") else 404)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    host = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=host.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{host.server_port}"
    host.shutdown()
    thread.join()
    host.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_host_that_answers_is_reached(server: str, tmp_path: Path) -> None:
    tfds_child._reach(builder(f"{server}/there/a.gz", f"{server}/there/b.gz"), tmp_path)


def test_missing_remote_file_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(NormbenchError, match=r"/gone/a\.gz answers with HTTP 404"):
        tfds_child._reach(builder(f"{server}/gone/a.gz"), tmp_path)


def test_local_files_are_not_requested(tmp_path: Path) -> None:
    (tmp_path / "a.gz").touch()
    tfds_child._reach(builder("http://127.0.0.1:9/a.gz"), tmp_path)


def test_closed_port_and_unknown_host_are_reported_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    for url in ("http://127.0.0.1:9/a.gz", "http://no-such-host.invalid/a.gz"):
        with pytest.raises(NormbenchError, match="cannot be reached from this machine"):
            tfds_child._reach(builder(url), tmp_path)
    assert time.monotonic() - start < 15


def test_host_that_never_answers_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_child, "_TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/a.gz"
        with pytest.raises(NormbenchError, match="does not answer"):
            tfds_child._reach(builder(url), tmp_path)


def test_examples_read_back_must_equal_those_written() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 4, 4, 3), np.uint8), np.arange(20, dtype=np.int32)
    written = {"image": images, "label": labels}
    order = rng.permutation(20)
    folder = Path("made")
    tfds_child._compare("train", written, {"image": images[order], "label": labels[order]}, folder)
    other = images.copy()
    other[3, 0, 0, 0] ^= 1
    for read in (
        {"image": images[order], "label": labels},
        {"image": other, "label": labels},
        {"image": images[:-1], "label": labels[:-1]},
    ):
        with pytest.raises(NormbenchError, match="are not those written"):
            tfds_child._compare("train", written, read, folder)


def test_normbench_error_is_passed_on_unchanged(tmp_path: Path) -> None:
    request = {"name": "mnist", "data_dir": str(tmp_path), "arrays": str(tmp_path / "none"),
               "label_names": {}, "cache_path": str(tmp_path / "c")}  # fmt: skip
    with pytest.raises(NormbenchError, match=r"^.*/none is incomplete$"):
        tfds_process.run("write", request)


def test_other_failures_are_reported_by_their_last_line(tmp_path: Path) -> None:
    with pytest.raises(NormbenchError) as caught:
        tfds_process.run("write", {"name": "mnist"})
    message = str(caught.value)
    assert "could not write the data set (exit 1): TypeError: write() missing" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "it said nothing"),
        ("loading\nAborted\n\n", "Aborted"),
        (
            "W note\nTraceback (most recent call last):\n  File 'a', line 1\n    f()\n"
            "a.b.WrongSum: x.gz has a wrong checksum:\n* Expected: 1\nTo debug, see: y\n",
            "a.b.WrongSum: x.gz has a wrong checksum",
        ),
    ],
)
def test_reason_is_the_line_that_names_the_exception(log: str, reason: str) -> None:
    assert tfds_process._reason(log) == reason


def test_process_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c",
         "import time\nfrom normbench.data.tfds_child import _end_with_parent\n"
         "import threading\nthreading.Thread(target=_end_with_parent, daemon=True).start()\n"
         "print('up', flush=True)\ntime.sleep(60)"],
        cwd=Path(normbench.__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.stdin.close()  # as the system does when the parent dies
    assert child.wait(20) == 1
    child.stdout.close()
