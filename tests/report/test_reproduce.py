"""The commands that a report gives for its runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from normbench.report import load
from normbench.report.origin import commands, report_command
from normbench.report.sections import Request
from normbench.report.venues import VENUES


def frame(*argv: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"command": [json.dumps(command) for command in argv]})


def test_full_grid_becomes_one_sweep(grid: Callable[..., Path]) -> None:
    root = grid(norms=("bn", "gn_ws"), batches=(16, 128), seeds=3, epochs=3)
    assert commands(load(root).runs) == [
        (
            "normbench sweep norm=bn,gn_ws batch=16,128 seed=0,1,2 dataset=digits arch=resnet8 "
            "epochs=3",
            12,
        )
    ]


def test_adjacent_grids_become_few_sweeps() -> None:
    runs = [
        ["normbench", "run", f"norm={norm}", f"batch={batch}"]
        for norm, batches in (("bn", (16, 32)), ("gn", (16, 32)), ("ln", (64,)))
        for batch in batches
    ]
    assert commands(frame(*runs)) == [
        ("normbench sweep norm=bn,gn batch=16,32", 4),
        ("normbench run norm=ln batch=64", 1),
    ]


def test_commands_that_form_no_grid_are_listed() -> None:
    runs = [["normbench", "run", "norm=bn", "batch=16"], ["normbench", "run", "norm=gn", "batch=8"]]
    assert [count for _, count in commands(frame(*runs))] == [1, 1]
    sweep = ["/opt/bin/normbench", "sweep", "norm=bn,gn"]
    assert commands(frame(sweep, sweep)) == [("normbench sweep norm=bn,gn", 2)]
    resumed = ["normbench", "run", "norm=bn", "--resume"]
    assert len(commands(frame(runs[0], resumed))) == 2


def test_report_command_reproduces_the_report() -> None:
    request = Request("norm in [bn, gn]", ("arch", "batch"), "test_err", "gn", 0.9, ("optimizer",))
    assert report_command([Path("my runs")], request) == (
        "normbench report 'my runs' --where 'norm in [bn, gn]' --by arch,batch "
        "--metric test_err --baseline gn --target 0.9 "
        "--allow-confound optimizer"
    )
    request = Request(rows=("gn_ws", "bn"), style="icml", formats=("pdf",))
    assert report_command([Path("runs")], request) == (
        "normbench report runs --rows gn_ws,bn --style icml --formats pdf"
    )
    request = Request(style="icml", formats=VENUES["icml"].formats)
    assert report_command([Path("runs")], request) == "normbench report runs --style icml"
