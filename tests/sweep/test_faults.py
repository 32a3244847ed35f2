"""Sweeps that are killed, filled up, corrupted and interrupted at random, round after round.

Everything but the network is real: processes, signals, pipes, locks, files. After each round the
store is read and the guarantees are checked: finished runs are unchanged and not trained again,
every folder is readable except those corrupted on purpose, and in the end every run has the same
numbers as without faults.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from normbench.config import compose
from normbench.store.store import Store, StoreError
from tests.waiting import wait_until

FAKESWEEP = Path(__file__).with_name("fakesweep.py")

SEEDS = 5

#: Events of a round, with their relative frequencies.
ACTIONS = {
    "nothing": 1,
    "kill a worker": 4,
    "interrupt a worker": 1,
    "interrupt": 3,
    "interrupt twice": 2,
    "terminate": 1,
    "kill the sweep": 3,
    "fill the disk": 2,
    "corrupt a file": 3,
    "a run raises": 2,
    "a run aborts": 2,
    "a run finds no memory": 2,
}


class Trial:
    """One grid that is swept until it is complete, despite faults."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.dice = dice
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        self.store = Store(folder / "runs")
        self.overrides = [
            "dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4", "norm=bn",
            "batch=16", "epochs=6", f"store={self.store.root}",
        ]  # fmt: skip
        self.names = [compose([*self.overrides, f"seed={seed}"]).run_name for seed in range(SEEDS)]
        self.finished: dict[str, tuple[bytes, int]] = {}
        self.corrupt: set[str] = set()
        self.output = ""  # output of the last sweep

    @property
    def complete(self) -> bool:
        return len(self.finished) == SEEDS

    def sweep(self, action: str) -> int:
        """Run one sweep, subject it to ``action``, and return its exit code."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "FAKE_FAULTS": str(self.faults),
            "FAKE_STEP_SECONDS": "0.01",
        }
        if action == "fill the disk":
            environment["FAKE_DISK_AFTER"] = str(self.dice.randrange(1, 12))
        kind = {"a run raises": "raise", "a run aborts": "abort",
                "a run finds no memory": "memory"}.get(action)  # fmt: skip
        if kind:
            name = self.dice.choice(self.names)
            (self.faults / name).write_text(f"{kind} {self.dice.choice((1, 9))}")
        if action == "corrupt a file":
            self._corrupt()
        workers = self.dice.choice((1, 2))
        process = subprocess.Popen(
            [sys.executable, str(FAKESWEEP), "sweep", *self.overrides, f"seed=range(0,{SEEDS})",
             f"executor.workers={workers}", "--retry-failed"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._strike(action, process)
        output, _ = process.communicate(timeout=120)
        wait_until(lambda: not any(self._is_running(name) for name in self.names))
        for fault in self.faults.glob("digits-*"):
            fault.unlink()
        assert "Traceback" not in output.split("failed", 1)[0], output
        self.output = output
        return process.returncode

    def _strike(self, action: str, process: subprocess.Popen[str]) -> None:
        signals = {"interrupt": [signal.SIGINT], "interrupt twice": [signal.SIGINT] * 2,
                   "terminate": [signal.SIGTERM], "kill the sweep": [signal.SIGKILL]}  # fmt: skip
        worker = {"kill a worker": signal.SIGKILL, "interrupt a worker": signal.SIGINT}.get(action)
        if action not in signals and worker is None:
            return
        # Wait until signal handlers are installed, then strike at a random moment.
        record = self.store.root / "sweeps"
        before = len(list(record.glob("*"))) if record.is_dir() else 0
        wait_until(lambda: process.poll() is not None
              or (record.is_dir() and len(list(record.glob("*"))) > before))  # fmt: skip
        time.sleep(0.3 + self.dice.random() * 3)
        for number in signals.get(action, []):
            process.send_signal(number)
            time.sleep(self.dice.random() * 0.3)
        if worker is not None and process.poll() is None:
            try:
                children = [child for child in psutil.Process(process.pid).children()
                            if "fakeengine.py" in " ".join(child.cmdline())]  # fmt: skip
                if children:
                    self.dice.choice(children).send_signal(worker)
            except psutil.NoSuchProcess:  # it just ended
                pass

    def _corrupt(self) -> None:
        """Damage a file of a run that is not finished."""
        unfinished = [name for name in self.names if name not in self.finished]
        for name in unfinished:
            path = self.store.root / name
            files = ["meta.json", "config.yaml", "metrics.jsonl", "checkpoint/last.npz"]
            existing = [path / file for file in files if (path / file).is_file()]
            if existing:
                chosen = self.dice.choice(existing)
                data = chosen.read_bytes()
                chosen.write_bytes(b"\x00{" + data[: len(data) // 2] + b"\n\xff\n")
                self.corrupt.add(name)
                return

    def _is_running(self, name: str) -> bool:
        try:
            return self.store.run(name).status == "running"
        except StoreError:
            return False

    def check(self) -> None:
        """Read the store and check the guarantees."""
        epochs = Counter(line.split()[0] for line in _lines(self.faults / "epochs.log"))
        for seed, name in enumerate(self.names):
            run = self.store.run(name)
            count = epochs[str(seed)]
            if name in self.finished:
                before, trained = self.finished[name]
                assert (run.path / "summary.json").read_bytes() == before
                assert run.status == "finished"
                assert count == trained, f"{name} was trained after it had finished"
                continue
            try:
                status = run.status
                if status != "missing":
                    rows = [row["epoch"] for row in run.metrics()]
                    assert rows == list(range(1, len(rows) + 1))
                    run.load_checkpoint()
                self.corrupt.discard(name)
            except StoreError:
                assert name in self.corrupt, f"{name} cannot be read"
                continue
            assert status in ("missing", "interrupted", "failed", "finished")
            if status == "finished":
                self.finished[name] = ((run.path / "summary.json").read_bytes(), count)
                assert len(run.metrics()) == 6
        for path, reason in self.store.foreign():
            assert "its process ended early" in reason or path.name in self.corrupt, reason

    def weights(self) -> list[str]:
        return [(self.store.run(name).summary or {})["weights_sha256"] for name in self.names]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def inject(folder: Path, rounds: int, seed: int) -> Counter[str]:
    """Run rounds on one grid after another; return how often each event happened."""
    dice = random.Random(seed)
    clean = Trial(folder / "clean", dice)
    assert clean.sweep("nothing") == 0
    clean.check()
    expected, trial, happened = clean.weights(), None, Counter()
    for number in range(rounds):
        if trial is None:
            trial = Trial(folder / f"from-{number}", dice)
        action = dice.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        happened[action] += 1
        code = trial.sweep(action)
        trial.check()
        assert code in (0, 1, 130, -signal.SIGKILL), (action, code)
        if code == 0:
            assert trial.complete, (action, trial.output)
        if trial.complete:
            assert trial.weights() == expected
            trial = None
    if trial is not None:
        trial.sweep("nothing")
        trial.check()
        assert trial.complete, trial.output
        assert trial.weights() == expected
    return happened


def test_two_rounds_of_faults(tmp_path):
    inject(tmp_path, rounds=2, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_thirty_rounds_of_faults(tmp_path, seed):
    happened = inject(tmp_path, rounds=30, seed=seed)
    print(dict(happened))
    assert len(happened) >= 8
