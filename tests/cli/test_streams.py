"""Output that cannot be written or encoded does not stop the work of a command."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from normbench import cli
from normbench.cli import streams
from normbench.store.store import Store

ROOT = Path(__file__).parents[2]
FAKE = [sys.executable, str(ROOT / "tests" / "sweep" / "fakesweep.py")]
RUN = ["dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4", "norm=bn",
       "batch=16", "epochs=3"]  # fmt: skip

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash with the command as its arguments; the status is that of the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}", "bash", *arguments],
        capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


BROKEN, FULL, CLOSED = '"$@" | true', '"$@" > /dev/full 2> /dev/full', '"$@" >&- 2>&- <&-'


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("run", BROKEN),
        pytest.param("run", FULL, marks=needs_dev_full),
        ("sweep", BROKEN),
        ("sweep", CLOSED),
    ],
)
def test_run_and_sweep_train_to_completion_when_output_fails(command, line, tmp_store):
    more = ["seed=0,1", "executor.workers=1"] if command == "sweep" else ["seed=0"]
    done = shell(line, *FAKE, command, *RUN, *more, f"store={tmp_store}")
    runs = Store(tmp_store).runs()
    logs = [path.read_text() for path in tmp_store.glob("sweeps/*/*") if path.is_file()]
    assert done.returncode == 0, (done.stderr, logs)
    assert "Error" not in done.stderr
    assert [run.status for run in runs] == ["finished"] * (2 if command == "sweep" else 1)
    for run in runs:  # nothing was printed into a file of the run
        assert [row["epoch"] for row in run.metrics()] == [1, 2, 3]


def test_failed_sweep_still_exits_with_1(tmp_store, faults):
    from normbench.sweep.grid import expand

    (config,) = expand([*RUN, "seed=0", f"store={tmp_store}"])
    faults(config.run_name, "raise")
    done = shell('"$@" | true', *FAKE, "sweep", *RUN, "seed=0", f"store={tmp_store}")
    assert done.returncode == 1


@pytest.fixture
def faults(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAULTS", str(tmp_path))
    return lambda name, kind: (tmp_path / name).write_text(f"{kind} 1")


@needs_dev_full
def test_write_error_is_reported_but_a_closed_pipe_is_not():
    listing = [sys.executable, "-m", "normbench", "run", "--print-config"]
    full = shell('"$@" > /dev/full', *listing)
    assert full.returncode == 1
    assert full.stderr == (
        "normbench: standard output could not be written: No space left on device\n"
    )
    left = shell('"$@" | head -1', *listing)
    assert (left.returncode, left.stderr) == (0, "")
    assert left.stdout.count("\n") == 1


def test_names_are_shown_in_ascii(tmp_store):
    run = Store(tmp_store).run("digits-resnet8-bn-b16-s0-00000000")
    run.create({"signature": "00000000", "label": "γ ≤ 1"}, {"status": "failed"})
    show = [sys.executable, "-m", "normbench", "show", run.name, "--store", str(tmp_store)]
    shown = shell('"$@"', *show, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "gamma <= 1" in shown.stdout
    assert "?" not in shown.stdout


def test_only_unintended_output_loss_is_reported(monkeypatch, tmp_path):
    with (tmp_path / "out").open("wb", buffering=0) as file:
        stream = streams._text_stream(file.fileno(), None)
        monkeypatch.setattr(sys, "stdout", stream)
        assert streams.loss() == ""
        stream.buffer.raw.error = BrokenPipeError(errno.EPIPE, "Broken pipe")
        assert streams.loss() == ""
        stream.buffer.raw.error = OSError(errno.ENOSPC, "No space left on device")
        assert streams.loss() == "No space left on device"


def test_non_blocking_pipe_loses_no_output():
    read, write = os.pipe()
    os.set_blocking(write, False)
    received = bytearray()

    def receive() -> None:
        while data := os.read(read, 1 << 16):
            received.extend(data)

    reader = threading.Thread(target=receive, daemon=True)
    reader.start()
    stream = streams._text_stream(write, None)
    stream.write("x" * 300_000)
    stream.flush()
    os.close(write)
    reader.join(30)
    os.close(read)
    assert len(received) == 300_000


def test_characters_are_spelled_out_and_file_names_keep_their_bytes():
    import codecs

    codecs.register_error(streams.SPELLED, streams._spell)
    written = "95.0 ± 0.5 × 8, é ≤ γ² … ⅓ Ŵ̂ 験 \udcff \ud800".encode("ascii", streams.SPELLED)
    assert written == b"95.0 +/- 0.5 x 8, e <= gamma^2 ... 1/3 W ? \xff ?"
    assert "± × é".encode("latin-1", streams.SPELLED).decode("latin-1") == "± × é"


@pytest.mark.parametrize(
    ("words", "prints"),
    [
        (["list"], True),
        (["run", "--print-config"], True),
        (["run"], False),
        (["sweep", "status"], True),
        (["sweep", "--dry-run"], True),
        (["sweep", "seed=0,1"], False),
        (["report"], False),
        (["data", "list"], True),
        (["data", "prepare", "mnist"], False),
        (["diff", "a", "b"], True),
        (["diff", "a", "b", "--out", "c"], False),
        (["show", "arch=resnet8", "--plot", "a.png"], False),
        (["diagnose", "a"], False),
    ],
)
def test_commands_whose_only_result_is_their_output(words, prints):
    assert cli._writes(cli.parse(words)) != prints
