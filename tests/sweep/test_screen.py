"""The screen of a sweep: the live table at any width, and the log."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from normbench.cli.sweep_screen import SweepScreen
from normbench.store.store import Store
from normbench.sweep.cell import CellResult
from normbench.sweep.plan import PlannedCell, plan


@pytest.fixture
def sweep(grid, tmp_store, monkeypatch):
    """Return a function that starts a sweep of eight cells: its screen, its cells and its clock."""
    time = SimpleNamespace(now=1000.0)
    time.monotonic = lambda: time.now
    monkeypatch.setattr("normbench.cli.sweep_screen.time", time)
    configs = grid("norm=gn_scaled_ws,bn", "seed=0,1", "optimizer.lr=0.1,0.05")

    def make(live: bool) -> Any:
        console = Console(file=io.StringIO(), width=80, force_terminal=live, color_system=None)
        screen = SweepScreen(console, live)
        planned = plan(configs, Store(tmp_store))
        screen.begin(planned, 3, Store(tmp_store))
        for cell, where in zip(planned.cells, ["cpu 0", "cpu 1", "cpu 2"], strict=False):
            screen.started(cell, where)
        facts = {"epoch": 12, "epochs": 100, "loss": 12.5, "val_acc": 0.9, "images_per_s": 12345.6}
        for cell in planned.cells[1:3]:
            time.now += 10
            screen.progress(cell, facts)
        return screen, planned.cells, time

    return make


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_live_table_truncates_no_column(sweep, width):
    screen, _, _ = sweep(live=True)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    lines = ["".join(segment.text for segment in line).rstrip()
             for line in console.render_lines(screen, console.options, pad=False)]  # fmt: skip
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for heading in ("run", "epoch", "val acc", "elapsed"):
        assert heading in lines[0]
    assert ("images/s" in lines[0]) == (width >= 80)
    words = " ".join(text.split())
    for part in ("gn_scaled_ws", "s0", "s1", "lr=0.05", "starting", "12/100", "90.00%", "0:20",
                 "0/8", "3 running, 5 waiting", "time left unknown"):  # fmt: skip
        assert part in words, text
    if width >= 80:
        assert len(lines) <= 6  # a name may take two lines
        assert "cpu 1" in text


def test_log_has_a_line_per_minute_and_per_cell(sweep):
    screen, cells, time = sweep(live=False)
    assert screen.console.file.getvalue() == ""
    for _ in range(90):
        time.now += 1
        screen.idle()
    (line,) = screen.console.file.getvalue().splitlines()
    assert line == (
        "1:00 elapsed; 0 of 8 runs done; time left unknown; "
        "gn_scaled_ws s0 optimizer.lr=0.1 (starting); "
        "gn_scaled_ws s0 optimizer.lr=0.05 (epoch 12/100, val acc 90.00%); "
        "gn_scaled_ws s1 optimizer.lr=0.1 (epoch 12/100, val acc 90.00%)"
    )
    screen.ended(cells[0], CellResult("failed", "died", "its worker was killed by SIGKILL"))
    ended = screen.console.file.getvalue().splitlines()[1]
    assert ended == (
        f"[1/8] failed      {cells[0].name}  optimizer.lr=0.1  its worker was killed by SIGKILL"
    )
    time.now += 59
    screen.idle()
    assert len(screen.console.file.getvalue().splitlines()) == 2, "any line breaks the silence"


@pytest.mark.parametrize("terminal", [True, False])
def test_checking_is_shown_only_on_a_terminal(terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
    with pytest.raises(KeyboardInterrupt), SweepScreen(console).checking(54):
        raise KeyboardInterrupt
    written = console.file.getvalue()
    assert ("checking 54 runs …" in written) == terminal
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == int(terminal)


def test_single_cell_shows_no_differing_options(grid, tmp_store):
    console = Console(file=io.StringIO(), width=80)
    (config,) = grid()
    screen = SweepScreen(console)
    screen.begin(plan([config], Store(tmp_store)), 1, Store(tmp_store))
    screen.ended(PlannedCell(config, config.run_name), replace(CellResult("skipped"), seconds=1.0))
    assert console.file.getvalue() == f"[1/1] skipped     {config.run_name}\n"
