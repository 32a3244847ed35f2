"""The store: its guarantees for run folders when processes die and disks fail."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from normbench.errors import NormbenchError, UserError
from normbench.store import files
from normbench.store import lock as runlock
from normbench.store.store import Run, RunLocked, Store, StoreError

SIGNATURE = "3fa2b1c0"
NAME = f"digits-resnet8-gn_ws-b16-s0-{SIGNATURE}"
CONFIG = {
    "dataset": {"name": "digits", "flip": False},
    "norm": {"name": "gn_ws", "epsilon": 1e-5, "groups": None},
    "batch": 16,
    "label_smoothing": 0.1,
    "store": "runs",
    "signature": SIGNATURE,
    "schema": 1,
}
META = {"status": "running", "signature": SIGNATURE, "schema": 1, "git": None, "sessions": []}


@dataclass(frozen=True)
class Config:
    """The part of a config that the store uses."""

    run_name: str


def row(epoch: int, **more: object) -> dict[str, object]:
    return {"epoch": epoch, "train_loss": 1.0 / epoch, "val_acc": 0.5, **more}


@pytest.fixture
def run(tmp_store: Path) -> Run:
    """A run just created, unlocked."""
    run = Store(tmp_store).run(NAME)
    run.create(CONFIG, META)
    return run


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process on ``script``, its output readable line by line."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


OWNER = """
    import sys, time
    from normbench.store.store import Store
    run = Store(sys.argv[1]).run(sys.argv[2])
    with run.lock(["normbench", "run", "norm=gn ws"]):
        print("mine", flush=True)
        time.sleep(60)
"""


# --- creating and reading ----------------------------------------------------------------


def test_create_writes_a_readable_config_in_the_given_order_and_meta(run: Run) -> None:
    assert run.exists
    assert run.config == CONFIG
    assert list(run.config or {}) == list(CONFIG)
    assert run.meta == META
    assert run.summary is None
    text = (run.path / "config.yaml").read_text()
    assert "dataset:\n  name: digits\n" in text


def test_create_adds_signature_and_schema_from_meta(tmp_store: Path) -> None:
    run = Store(tmp_store).run("a")
    run.create({"batch": 2}, {"signature": "12345678"})
    assert run.config == {"batch": 2, "signature": "12345678", "schema": 1}
    with pytest.raises(ValueError, match="signature"):
        Store(tmp_store).run("b").create({"batch": 2}, {})


@pytest.mark.parametrize("signature", ["12345678", "1e123456", "00000010", "0x12ab34", "null0000"])
def test_signature_that_looks_like_a_number_stays_a_string(tmp_store: Path, signature: str) -> None:
    run = Store(tmp_store).run("a")
    run.create({"signature": signature}, {})
    assert run.config is not None
    assert run.config["signature"] == signature


def test_create_refuses_a_folder_of_another_signature(run: Run) -> None:
    before = (run.path / "config.yaml").read_bytes(), (run.path / "meta.json").read_bytes()
    with pytest.raises(StoreError, match="'3fa2b1c0', not 'ffffffff'") as caught:
        run.create({**CONFIG, "signature": "ffffffff"}, META)
    assert "\n" not in str(caught.value)
    after = (run.path / "config.yaml").read_bytes(), (run.path / "meta.json").read_bytes()
    assert after == before


def test_create_again_keeps_the_config_and_replaces_meta(run: Run) -> None:
    run.create({**CONFIG, "batch": 17}, {**META, "host": "b"})
    assert run.config == CONFIG
    assert run.meta == {**META, "host": "b"}


def test_update_meta_changes_only_the_given_keys(run: Run) -> None:
    run.update_meta(status="failed", error={"type": "OOM", "message": "é\n"})
    assert run.meta == {**META, "status": "failed", "error": {"type": "OOM", "message": "é\n"}}
    with pytest.raises(StoreError, match="no such file"):
        Store(run.path.parent).run("other").update_meta(status="failed")


def test_meta_is_strict_json(run: Run) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.update_meta(loss=math.nan)
    assert run.meta == META


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("meta.json", b"", "not JSON"),
        ("meta.json", b'{"status": "runn', "not JSON"),
        ("meta.json", b"\xff\xfe\x00", "not JSON"),
        ("meta.json", b"[]", "expected a JSON object, got list"),
        ("meta.json", b'{"schema": 7}', "its schema is 7"),
        ("summary.json", b"{", "not JSON"),
        ("config.yaml", b"a: [1", "not YAML"),
        ("config.yaml", b"\x00\x00", "not YAML"),
        ("config.yaml", b"when: 2026-99-99", "not YAML"),
        ("config.yaml", b"", "expected a mapping, got NoneType"),
    ],
)
def test_unreadable_files_are_named_in_one_line(
    run: Run, name: str, content: bytes, reason: str
) -> None:
    (run.path / name).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        getattr(run, name.partition(".")[0])
    message = str(caught.value)
    assert str(run.path / name) in message
    assert reason in message
    assert "\n" not in message
    assert isinstance(caught.value, NormbenchError)
    assert caught.value.exit_code == 1


# --- status ------------------------------------------------------------------------------


def test_status_follows_lock_meta_and_summary(run: Run) -> None:
    assert Store(run.path.parent).run("other").status == "missing"
    assert run.status == "interrupted"
    with run.lock([]):
        assert run.status == "running"
    assert run.status == "interrupted"
    run.update_meta(status="failed")
    assert run.status == "failed"
    with run.lock([]):  # tried again
        assert run.status == "running"
    run.update_meta(status="interrupted")
    assert run.status == "interrupted"


@pytest.mark.parametrize("ended", ["finished", "diverged"])
def test_summary_determines_status_even_if_meta_was_not_updated(run: Run, ended: str) -> None:
    run.write_summary({"status": ended})
    assert run.meta is not None
    assert run.meta["status"] == "running"
    assert run.status == ended
    with run.lock([]):
        assert run.status == ended
    run.update_meta(status=ended)
    assert run.status == ended


def test_finished_meta_without_a_summary_is_resumable(run: Run) -> None:
    run.update_meta(status="finished")
    assert run.status == "interrupted"


def test_summary_with_unknown_status_is_refused(run: Run) -> None:
    (run.path / "summary.json").write_text('{"status": "failed"}')
    with pytest.raises(StoreError, match="'failed'"):
        run.status  # noqa: B018
    with pytest.raises(UserError, match="'failed'"):
        run.write_summary({"status": "failed"})


def test_status_is_right_while_the_run_ends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner ends the run after meta.json was read and before the lock is checked."""
    checked: list[Path] = []

    def is_held(path: Path) -> bool:
        if not checked:
            run.update_meta(status="failed")
        checked.append(path)
        return False

    monkeypatch.setattr(runlock, "is_held", is_held)
    assert run.status == "failed"
    assert len(checked) == 2


def test_locked_but_not_created_folder_is_not_a_run(tmp_store: Path) -> None:
    store = Store(tmp_store)
    run = store.run(NAME)
    with run.lock([]):
        assert not run.exists
        assert run.status == "missing"
        assert store.runs() == []
        assert store.foreign() == []
    assert store.foreign() == [
        (
            run.path,
            "an empty run folder: no config.yaml, no meta.json (its process ended early)",
        )
    ]


# --- the lock ----------------------------------------------------------------------------


def test_lock_refusal_names_the_owner_and_death_releases_the_lock(tmp_store: Path) -> None:
    run = Store(tmp_store).run(NAME)
    owner = python(OWNER, tmp_store, NAME)
    try:
        assert read_line(owner) == "mine"
        began = time.monotonic()
        with pytest.raises(RunLocked) as caught, run.lock(["me"]):
            pass
        assert time.monotonic() - began < 1
        message = str(caught.value)
        assert NAME in message
        assert f"process {owner.pid} on " in message
        assert "normbench run 'norm=gn ws'" in message
        assert "\n" not in message
        assert isinstance(caught.value, UserError)
        assert caught.value.owner is not None
        assert caught.value.owner["pid"] == owner.pid
        assert run.owner == caught.value.owner
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        began = time.monotonic()
        assert run.owner is None
        with run.lock(["me"]) as dead_owner:
            assert time.monotonic() - began < 1
            assert dead_owner is not None
            assert dead_owner["pid"] == owner.pid
            assert run.owner is not None
            assert run.owner["pid"] == os.getpid()
        assert not (run.path / "lock.json").exists()
        with run.lock([]) as dead_owner:
            assert dead_owner is None
    finally:
        owner.kill()
        owner.wait()


def test_lock_is_not_reentrant_and_is_released_after_an_error(run: Run) -> None:
    def fail() -> None:
        with run.lock([]):
            with pytest.raises(RunLocked, match=str(os.getpid())), run.lock([]):
                pass
            with pytest.raises(RunLocked), Run(run.path / ".." / run.name).lock([]):
                pass
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not (run.path / "lock.json").exists()
    with run.lock([]):
        pass


def test_forked_child_neither_holds_nor_releases_the_lock(run: Run) -> None:
    script = """
        import os, sys, time
        from normbench.store.store import Store
        run = Store(sys.argv[1]).run(sys.argv[2])
        with run.lock([]):
            child = os.fork()
            if child:
                print(child, flush=True)
                time.sleep(60)
            elif sys.argv[3] == "unwinds":
                pass
            else:
                time.sleep(60)
    """
    for what in ("unwinds", "stays"):
        owner = python(script, run.path.parent, run.name, what)
        child = int(read_line(owner))
        try:
            if what == "unwinds":
                time.sleep(0.5)
            assert run.status == "running"
            assert run.owner is not None
            assert run.owner["pid"] == owner.pid
            owner.kill()
            owner.wait()
            time.sleep(0.2)  # the child closes its copy when it first runs
            with run.lock([]):
                pass
        finally:
            owner.kill()
            owner.wait()
            if what == "stays":
                os.kill(child, signal.SIGKILL)


def test_only_one_process_at_a_time_gets_the_lock_despite_status_checks(tmp_store: Path) -> None:
    """Fails if two processes get the lock at once, or if status checks keep them out."""
    Store(tmp_store).run(NAME).create(CONFIG, META)
    checker = python(
        """
        import sys
        from normbench.store.store import Store
        run = Store(sys.argv[1]).run(sys.argv[2])
        print("looking", flush=True)
        from normbench.store import lock as runlock
        while True:
            runlock.is_held(run.path / "lock")
        """,
        tmp_store,
        NAME,
    )
    taker = """
        import os, sys, time
        from normbench.store.store import RunLocked, Store
        run = Store(sys.argv[1]).run(sys.argv[2])
        inside = run.path / "inside"
        print("ready", flush=True)
        taken = refused = 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                with run.lock(["taker"]):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if two are inside
                    assert run.status == "running"
                    inside.unlink()
                taken += 1
            except RunLocked as locked:
                refused += 1
        print(taken, refused, flush=True)
    """
    takers = [python(taker, tmp_store, NAME) for _ in range(2)]
    try:
        assert read_line(checker) == "looking"
        assert [read_line(process) for process in takers] == ["ready", "ready"]
        counts = [read_line(process).split() for process in takers]
        assert all(len(count) == 2 and count[0].isdigit() for count in counts), counts
        assert sum(int(taken) for taken, _ in counts) > 1
    finally:
        for process in [checker, *takers]:
            process.kill()
            process.wait()


def test_status_checks_never_prevent_locking(tmp_store: Path) -> None:
    run = Store(tmp_store).run(NAME)
    run.create(CONFIG, META)
    script = """
        import sys
        from normbench.store.store import Store
        run = Store(sys.argv[1]).run(sys.argv[2])
        print("looking", flush=True)
        while True:
            run.status
    """
    checkers = [python(script, tmp_store, NAME) for _ in range(2)]
    try:
        assert [read_line(process) for process in checkers] == ["looking", "looking"]
        for _ in range(200):
            with run.lock([]):
                pass
    finally:
        for process in checkers:
            process.kill()
            process.wait()


def test_shared_lock_of_another_program_is_reported(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(runlock, "PATIENCE", 0.05)
    with (run.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert run.status == "interrupted"
        with pytest.raises(StoreError, match="locked for reading"), run.lock([]):
            pass


def test_file_system_without_locks_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock warns that it falls back to a file's existence
        with pytest.raises(StoreError, match=r"lock.*flock"), run.lock([]):
            pass
    assert not (run.path / "lock.json").exists()
    (run.path / "lock").touch()
    with pytest.raises(StoreError, match="lock"):
        run.status  # noqa: B018


def test_held_lock_with_stale_owner_information_is_respected(run: Run) -> None:
    import fcntl

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = {"host": socket.gethostname(), "pid": gone.pid, "command": []}
    (run.path / "lock.json").write_text(json.dumps(stale))
    with (run.path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunLocked, match=r"by another process$"), run.lock([]):
            pass


def test_locking_removes_temporary_files_of_a_killed_writer(run: Run) -> None:
    run.save_checkpoint({"a": np.zeros(3)}, {})
    leftovers = [
        run.path / ".meta.json.77-abcdef.tmp",
        run.path / "checkpoint" / ".last.npz.7-ab.tmp",
    ]
    for path in leftovers:
        path.write_bytes(b"half")
    with run.lock([]):
        assert not any(path.exists() for path in leftovers)
    assert run.meta == META
    assert run.load_checkpoint() is not None


# --- writing to a failing disk -----------------------------------------------------------


def writers(run: Run) -> dict[str, Callable[[], None]]:
    """Return a function for every kind of write, by the file it changes."""
    return {
        "meta.json": lambda: run.update_meta(status="failed"),
        "summary.json": lambda: run.write_summary({"status": "finished", "epochs": 2}),
        "metrics.jsonl": lambda: run.append_metrics(row(3)),
        "checkpoint/last.npz": lambda: run.save_checkpoint({"a": np.ones(9)}, {"epoch": 2}),
        "checkpoint/best.npz": lambda: run.save_checkpoint({"a": np.ones(9)}, {}, best=True),
    }


def write_all_files(run: Run) -> dict[str, bytes]:
    """Write an old version of every file of the run, and return their bytes."""
    run.write_summary({"status": "finished", "epochs": 1})
    run.append_metrics(row(1))
    run.append_metrics(row(2))
    for best in (False, True):
        run.save_checkpoint({"a": np.zeros(9)}, {"epoch": 1}, best=best)
    return {name: (run.path / name).read_bytes() for name in writers(run)}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_is_reported(
    run: Run, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = write_all_files(run)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, write in writers(run).items():
        if call == "replace" and name == "metrics.jsonl":
            continue  # appended, not replaced
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(StoreError) as caught:
                write()
        message = str(caught.value)
        assert str(run.path / name) in message
        assert "No space left on device" in message
        assert "\n" not in message
        assert (run.path / name).read_bytes() == before[name]
    assert list(run.path.rglob("*.tmp")) == []
    for write in writers(run).values():  # there is room again
        write()
    assert len(run.metrics()) == 3


def test_short_write_keeps_the_old_files(run: Run) -> None:
    """A real short write: the process may not make files larger than 4000 bytes."""
    process = python(
        """
        import resource, sys
        import numpy as np
        from normbench.store.store import Store, StoreError
        run = Store(sys.argv[1]).run(sys.argv[2])
        run.append_metrics({"epoch": 1, "note": "a"})
        run.save_checkpoint({"a": np.zeros(9)}, {"epoch": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        for write in (
            lambda: run.append_metrics({"epoch": 2, "note": "b" * 8000}),
            lambda: run.save_checkpoint({"a": np.zeros(9000)}, {"epoch": 2}),
            lambda: run.update_meta(note="c" * 8000),
        ):
            try:
                write()
            except StoreError as error:
                print(error)
        run.append_metrics({"epoch": 2, "note": "d"})
        """,
        run.path.parent,
        run.name,
    )
    output, _ = process.communicate(timeout=60)
    lines = output.splitlines()
    assert process.returncode == 0, output
    assert [Path(line.split()[2].rstrip(":")).name for line in lines] == [
        "metrics.jsonl",
        "last.npz",
        "meta.json",
    ], output
    assert run.metrics() == [{"epoch": 1, "note": "a"}, {"epoch": 2, "note": "d"}]
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded[1] == {"epoch": 1}
    assert run.meta == META
    assert list(run.path.rglob("*.tmp")) == []


def test_writer_killed_mid_write_leaves_a_readable_run(tmp_store: Path) -> None:
    """Kill a constantly writing process at several moments; every file stays intact."""
    run = Store(tmp_store).run(NAME)
    script = """
        import sys
        import numpy as np
        from normbench.store.store import Store
        run = Store(sys.argv[1]).run(sys.argv[2])
        with run.lock([]):
            last = run.last_metrics()
            epoch = last["epoch"] if last else 0
            if not run.exists:
                run.create({"signature": "3fa2b1c0"}, {"status": "running"})
            print("on", flush=True)
            while True:
                epoch += 1
                run.append_metrics({"epoch": epoch, "note": "x" * (epoch % 700)})
                run.save_checkpoint({"w": np.full(20000, epoch)}, {"epoch": epoch})
                run.update_meta(epoch=epoch)
    """
    reached = 0
    for wait in (0.0, 0.01, 0.023, 0.05, 0.11):
        process = python(script, tmp_store, NAME)
        assert read_line(process) == "on"
        time.sleep(wait)
        process.kill()
        process.wait()
        assert run.status == "interrupted"
        epochs = [r["epoch"] for r in run.metrics()]
        assert epochs == list(range(1, len(epochs) + 1))
        loaded = run.load_checkpoint()
        if loaded is not None:
            arrays, info = loaded
            assert np.all(arrays["w"] == info["epoch"])
            assert len(epochs) - 1 <= info["epoch"] <= len(epochs)
        assert run.meta is not None
        assert run.meta.get("epoch", 0) <= len(epochs)
        reached = len(epochs)
    assert reached > 2


# --- metrics -----------------------------------------------------------------------------


def test_metrics_are_strict_json_with_null_for_non_finite_values(run: Run) -> None:
    run.append_metrics(
        {
            "epoch": 1,
            "train_loss": math.nan,
            "grad_norm": math.inf,
            "lr": np.float32(0.5),
            "val_acc": np.float64("nan"),
            "step": np.int64(7),
            "half": ml_dtypes.bfloat16(1.5),
            "flag": np.bool_(True),
            "zero_d": np.array(3.0),
            "list": (1, -math.inf),
        }
    )
    line = (run.path / "metrics.jsonl").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse) == {
        "epoch": 1,
        "train_loss": None,
        "grad_norm": None,
        "lr": 0.5,
        "val_acc": None,
        "step": 7,
        "half": 1.5,
        "flag": True,
        "zero_d": 3.0,
        "list": [1, None],
    }
    assert run.metrics() == [json.loads(line)]
    assert run.last_metrics() == json.loads(line)


def test_summary_stores_nan_as_null(run: Run) -> None:
    run.write_summary({"status": "diverged", "train_loss": math.nan, "diverged_step": 12})
    assert run.summary == {"status": "diverged", "train_loss": None, "diverged_step": 12}


def test_torn_line_is_ignored_and_not_joined_to_the_next_append(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    rows = [row(1, note="ä"), row(2), row(3)]
    for metrics in rows:
        run.append_metrics(metrics)
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        # A line is complete with its closing brace, with or without the newline after it.
        complete = rows[: sum(cut >= end - 1 for end in ends)]
        assert run.metrics() == complete, cut
        assert run.last_metrics() == (complete[-1] if complete else None)
        run.append_metrics(row(len(complete) + 1))
        assert run.metrics() == [*complete, row(len(complete) + 1)], cut
        assert path.read_bytes().count(b"\n") == len(complete) + 1


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b"\0\0\n", b'{"epoch": 3', b"\xff\n", b"7\n", b"\n"])
def test_trailing_garbage_counts_as_a_torn_line(run: Run, tail: bytes) -> None:
    run.append_metrics(row(1))
    run.append_metrics(row(2))
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert run.metrics() == [row(1), row(2)]
    assert run.last_metrics() == row(2)
    run.append_metrics(row(3))
    assert run.metrics() == [row(1), row(2), row(3)]


def test_torn_line_before_the_last_raises(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": \n{"epoch": 3}\n')
    with pytest.raises(StoreError, match=r"metrics\.jsonl: line 2 "):
        run.metrics()


def test_last_row_is_read_without_reading_the_full_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path / "metrics.jsonl"
    long = [row(epoch, note="x" * 30_000) for epoch in range(1, 41)]
    path.write_text("".join(json.dumps(metrics) + "\n" for metrics in long))
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_bytes", lambda path: pytest.fail("reads the whole file"))
        assert run.last_metrics() == long[-1]
    with path.open("ab") as file:
        file.write(b'{"epoch": 41, "note": "' + b"y" * 100_000)
    assert run.last_metrics() == long[-1]
    run.append_metrics(row(41))
    assert run.metrics() == [*long, row(41)]


def test_epochs_must_be_consecutive(run: Run) -> None:
    with pytest.raises(StoreError, match=r"epoch 2 .*last epoch is 0"):
        run.append_metrics(row(2))
    run.append_metrics(row(1))
    run.append_metrics(row(2))
    for epoch in (1, 2, 4):
        with pytest.raises(StoreError, match=f"epoch {epoch} .*last epoch is 2"):
            run.append_metrics(row(epoch))
    assert run.metrics() == [row(1), row(2)]


def test_truncate_metrics_keeps_lines_up_to_an_epoch_unchanged(run: Run) -> None:
    path = run.path / "metrics.jsonl"
    run.truncate_metrics(0)
    assert not path.exists()
    for epoch in (1, 2, 3):
        run.append_metrics(row(epoch))
    content = path.read_bytes()
    path.write_bytes(content + b'{"epoch": 4, "tr')
    with pytest.raises(StoreError, match="ends after epoch 3, but the checkpoint is of epoch 4"):
        run.truncate_metrics(4)
    run.truncate_metrics(3)
    assert path.read_bytes() == content
    run.truncate_metrics(2)
    assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[:2])
    run.append_metrics(row(3))
    run.truncate_metrics(0)
    assert run.metrics() == []
    run.append_metrics(row(1))
    assert run.metrics() == [row(1)]


# --- checkpoints -------------------------------------------------------------------------


def some_arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "stem/conv/kernel": generator.normal(size=(3, 3, 2, 4)).astype(np.float32),
        "file": np.arange(6).reshape(2, 3).T,  # a keyword of np.savez, and not in C order
        "step": np.int64(7) + np.zeros((), np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "flags": np.array([True, False]),
        "bf16": np.arange(7, dtype=np.float32).astype(ml_dtypes.bfloat16),
        "bf16 scalar": np.array(1.5, ml_dtypes.bfloat16),
        "bf16 strided": np.arange(8).astype(ml_dtypes.bfloat16)[::2],
        "fp8": np.array([0.5, 2.0], ml_dtypes.float8_e4m3fn),
        "big endian": np.arange(3, dtype=">i4"),
        "nan": np.array([math.nan, -0.0, math.inf]),
        "名/ü": np.array(["a", "bc"]),
    }


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def test_checkpoints_round_trip_bit_exactly(run: Run) -> None:
    assert run.load_checkpoint() is None
    assert run.load_checkpoint(best=True) is None
    info = {"epoch": 3, "seed": 2**63, "metrics": {"val_acc": 0.1}}
    run.save_checkpoint(some_arrays(), info)
    run.save_checkpoint({"a": np.zeros(2)}, {"epoch": 1}, best=True)
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert_same(loaded[0], some_arrays())
    assert loaded[1] == info
    assert run.checkpoint_info() == info
    assert run.checkpoint_info(best=True) == {"epoch": 1}
    run.save_checkpoint({}, {})
    assert run.load_checkpoint() == ({}, {})


def test_checkpoint_is_a_plain_npz(run: Run) -> None:
    run.save_checkpoint(some_arrays(), {})
    with np.load(run.path / "checkpoint" / "last.npz") as plain:
        kernel = some_arrays()["stem/conv/kernel"]
        np.testing.assert_array_equal(plain["stem/conv/kernel"], kernel)


@pytest.mark.parametrize(
    "array", [np.array([object()]), np.zeros(2, [("a", "f4"), ("b", "i4")])], ids=["object", "rec"]
)
def test_unsupported_dtypes_are_refused(run: Run, array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="'w' has dtype"):
        run.save_checkpoint({"w": array}, {})
    assert run.load_checkpoint() is None
    assert list(run.path.rglob("*.tmp")) == []


def test_every_truncation_and_flipped_byte_is_detected_or_harmless(run: Run) -> None:
    arrays = {"w/k": np.arange(5, dtype=np.float32), "b": np.ones(3, ml_dtypes.bfloat16)}
    info = {"epoch": 3}
    run.save_checkpoint(arrays, info)
    path = run.path / "checkpoint" / "last.npz"
    content = path.read_bytes()
    for position in range(len(content)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            refused = ""
            loaded = None
            try:
                loaded = run.load_checkpoint()
            except StoreError as error:
                refused = str(error)
            if loaded is None:
                assert str(path) in refused
                assert "\n" not in refused
            else:  # damage to a time stamp, for example
                assert_same(loaded[0], arrays)
                assert loaded[1] == info
        path.write_bytes(content[:position])
        with pytest.raises(StoreError, match=r"last\.npz"):
            run.load_checkpoint()
    data = content.index(np.arange(5, dtype=np.float32).tobytes())
    for position in range(data, data + 20):  # damaged weights are never loaded
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="corrupt"):
            run.load_checkpoint()


def test_reset_removes_training_results(run: Run) -> None:
    write_all_files(run)
    run.reset()
    assert run.status == "interrupted"
    assert run.metrics() == []
    assert run.summary is None
    assert run.load_checkpoint() is None
    assert run.config == CONFIG
    assert run.meta == META
    run.reset()


# --- the store ---------------------------------------------------------------------------


def test_missing_store_is_empty_and_created_by_the_first_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "runs")
    assert store.runs() == []
    assert store.foreign() == []
    assert not store.root.exists()
    run = store.run(Config(NAME))
    assert run.status == "missing"
    assert run.metrics() == []
    assert run.last_metrics() is None
    assert run.meta is None
    assert run.config is None
    assert run.owner is None
    assert not store.root.exists()
    with run.lock([]):
        run.create(CONFIG, META)
    assert [found.name for found in store.runs()] == [NAME]


def test_store_that_is_a_file_or_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file: Not a directory"):
        Store(tmp_path / "file").runs()
    with pytest.raises(StoreError, match="cannot make"), Store(tmp_path / "file").run("a").lock([]):
        pass


def test_runs_are_sorted_and_foreign_entries_are_reported(tmp_store: Path) -> None:
    store = Store(tmp_store)
    for name in ("b-00000002", "a-00000001"):
        store.run(name).create({}, {"signature": name[-8:]})
    (tmp_store / "README.md").touch()
    (tmp_store / ".gitignore").touch()
    (tmp_store / ".trash").mkdir()
    (tmp_store / "sweeps" / "one").mkdir(parents=True)
    (tmp_store / "published" / "table").mkdir(parents=True)
    (tmp_store / "notes.txt").touch()
    (tmp_store / "photos").mkdir()
    (tmp_store / "photos" / "cat.jpg").touch()
    (tmp_store / "half").mkdir()
    (tmp_store / "half" / "config.yaml").touch()
    assert [run.name for run in store.runs()] == ["a-00000001", "b-00000002"]
    foreign = {path.name: reason for path, reason in store.foreign()}
    assert foreign == {
        "half": "an empty run folder: no meta.json (its process ended early)",
        "notes.txt": "a file, not a run folder",
        "photos": "not a run folder: no config.yaml, no meta.json",
    }


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "sweeps", "published", "a\0b"])
def test_run_name_must_be_a_plain_folder_name(tmp_store: Path, name: str) -> None:
    with pytest.raises(UserError, match="plain name"):
        Store(tmp_store).run(name)


def test_find_by_name_path_signature_and_unique_prefix(tmp_store: Path) -> None:
    store = Store(tmp_store)
    names = [
        "digits-resnet8-bn-b16-s0-aaaa0001",
        "digits-resnet8-bn-b16-s0-aaaa0002",
        "digits-resnet8-bn-b16-s0-aaaa0001-x-bbbb0003",
        "mnist-mlp-none-b60-s0-aaaa0004",
    ]
    for name in names:
        store.run(name).create({}, {"signature": name[-8:]})
    for name in names:
        assert store.find(name).name == name
        assert store.find(name[-8:]).name == name
        assert store.find(f"{tmp_store}/{name}/").name == name
    assert store.find("mnist").name == names[3]
    assert store.find("bb").name == names[2]
    with pytest.raises(UserError, match=r"any of 3: .*aaaa0001.*aaaa0002"):
        store.find("digits")
    with pytest.raises(UserError, match="any of 3"):
        store.find("aaaa")
    with pytest.raises(UserError, match="did you mean 'mnist-mlp-none-b60-s0-aaaa0004'"):
        store.find("mnist-mlp-none-b60-s1")
    for text in ("", "/", "nope/" + names[3]):
        with pytest.raises(UserError, match="unknown run"):
            store.find(text)
    with pytest.raises(UserError, match="has no runs"):
        Store(tmp_store / "none").find("a")


def test_ten_thousand_runs_are_listed_without_opening_a_file(
    tmp_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(10_000):
        folder = tmp_store / f"digits-resnet8-bn-b16-s{index}-{index:08x}"
        folder.mkdir()
        (folder / "config.yaml").touch()
        (folder / "meta.json").touch()
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_, **__: pytest.fail("opens a file"))
        began = time.process_time()
        assert len(Store(tmp_store).runs()) == 10_000
        assert Store(tmp_store).foreign() == []
    assert time.process_time() - began < 5


def test_reading_a_store_writes_nothing(run: Run) -> None:
    run.append_metrics(row(1))
    store = Store(run.path.parent)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    for found in store.runs():
        assert found.status == "interrupted"
        found.metrics()
        found.last_metrics()
        found.checkpoint_info()
        assert found.owner is None
    store.foreign()
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


# --- hostile checkpoints -----------------------------------------------------------------


def _zip(path: Path, compression: int, entries: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def _npy(shape: str, data: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


_ONE = b'{"schema": 1, "arrays": {"w": "float32"}, "info": {}}'


@pytest.mark.parametrize(
    ("compression", "entries", "reason"),
    [
        (zipfile.ZIP_DEFLATED, {"normbench.json": b" " * (8 << 20) + b"{}"}, "is compressed"),
        (
            zipfile.ZIP_STORED,
            {"normbench.json": _ONE, "w.npy": _npy("(9999999999999,)", b"1234")},
            "has 4 bytes, which does not match its shape",
        ),
        (zipfile.ZIP_STORED, {"normbench.json": b'{"schema": 1, "arrays": []}'}, "info is missing"),
        (zipfile.ZIP_STORED, {"normbench.json": b"[" * 99_999}, "nested too deeply"),
        (
            zipfile.ZIP_STORED,
            {"normbench.json": b'{"schema": 1, "arrays": {}, "info": {"epoch": "x"}}'},
            "epoch is 'x'",
        ),
    ],
)
def test_hostile_checkpoints_are_refused_before_they_are_unpacked(
    run: Run, compression: int, entries: dict[str, bytes], reason: str
) -> None:
    path = run.path / "checkpoint" / "last.npz"
    _zip(path, compression, entries)
    with pytest.raises(StoreError, match=reason) as caught:
        run.load_checkpoint()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
