"""``sweep.json``: the reader that sweeps and reports share, and how it reports damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from normbench.cli import main
from normbench.report.sequential import declared
from normbench.store import sweeps
from normbench.store.files import StoreError
from normbench.store.store import SWEEPS, Store
from normbench.sweep.record import records

OLDER = Path(__file__).with_name("written_by_2e78b7c")


def head(**changes: Any) -> dict[str, Any]:
    cell = {"name": "run-a", "state": "missing", "todo": True, "reason": "", "seconds": None}
    return {
        "schema": 1,
        "started": "2026-11-27T06:35:57Z",
        "ended": None,
        "result": None,
        "command": ["normbench", "sweep"],
        "cells": [cell],
    } | changes


def write(root: Path, content: Any, name: str = "20261127-063557-3cc5") -> Path:
    """Write the ``sweep.json`` of a sweep; ``content`` may be text that is not JSON."""
    folder = root / SWEEPS / name
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / sweeps.FILE).write_text(text)
    return folder


UNTIL = {"looks": [3, 4, 6], "seeds": 4, "stopped": ""}

DAMAGE = [
    ("{", "not JSON"),
    ("[]", "expected a JSON object"),
    (head(schema=2), "its schema is 2, but this version of normbench reads 1"),
    (head(schema="1"), "its schema is '1', but this version of normbench reads 1"),
    ({key: value for key, value in head().items() if key != "cells"}, "cells is missing"),
    ({key: value for key, value in head().items() if key != "started"}, "started is missing"),
    (head(cells={}), "cells is {}, not a list"),
    (head(cells=[{"name": "run-a"}]), "cells.0.state is missing"),
    (head(cells=[head()["cells"][0] | {"name": "../run-a"}]), "not the plain name of a folder"),
    (head(cells=[head()["cells"][0] | {"todo": "yes"}]), "cells.0.todo is 'yes'"),
    (head(command="normbench sweep"), "command is 'normbench sweep', not a list"),
    (head(host=7), "host is 7"),
    (head(until=None), "until is None, not a mapping"),
    (head(until={}), "until.looks is missing"),
    (head(until=UNTIL | {"looks": "six"}), "until.looks is 'six'"),
    (head(until=UNTIL | {"looks": []}), "until.looks is []"),
    (head(until=UNTIL | {"looks": [6, 4, 3]}), "until.looks is [6, 4, 3], not in ascending order"),
    (head(until=UNTIL | {"looks": [3, 4, 4]}), "not in ascending order"),
    (head(until=UNTIL | {"seeds": 5}), "until.seeds is 5, not one of the looks [3, 4, 6]"),
    (head(until=UNTIL | {"stopped": "bored"}), "until.stopped is 'bored'"),
]


@pytest.mark.parametrize(("content", "reason"), DAMAGE)
def test_damage_is_named_with_the_file_and_the_key(
    content: Any, reason: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, content)
    with pytest.raises(StoreError) as error:
        sweeps.read(folder)
    assert str(error.value).startswith(f"cannot read {folder / sweeps.FILE}: ")
    assert reason in str(error.value)
    with pytest.raises(StoreError):
        declared(tmp_path)
    with pytest.raises(StoreError):
        _ = records(Store(tmp_path))[0].head


@pytest.mark.parametrize("content", ["{", head(until={"looks": "six"})])
def test_commands_name_a_damaged_record_in_one_line(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, content)
    assert main(["sweep", "status", "--store", str(tmp_path)]) != 0
    error = capsys.readouterr().err
    assert f"{sweeps.FILE}: " in error
    assert error.count("\n") == 1


def test_records_of_earlier_versions_are_read() -> None:
    (record,) = sweeps.read_all(OLDER)
    assert record["result"] == "complete"
    assert [cell["differs"] for cell in record["cells"]] == [""] * 4
    assert declared(OLDER) == {}


def test_record_with_keys_of_later_versions_is_read(tmp_path: Path) -> None:
    cell = head()["cells"][0] | {"differs": "optimizer.lr=0.1", "slot": "cpu 0"}
    folder = write(tmp_path, head(cells=[cell], plan="b"))
    assert sweeps.read(folder) == head(cells=[cell], plan="b")


def test_folder_without_a_record_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / SWEEPS / "empty").mkdir(parents=True)
    assert sweeps.read(tmp_path / SWEEPS / "empty") is None
    assert [*sweeps.read_all(tmp_path)] == []
    assert [*sweeps.read_all(tmp_path / "nowhere")] == []


def test_run_in_several_sweeps_gets_the_longest_schedule(tmp_path: Path) -> None:
    write(tmp_path, head(until={"looks": [3, 4, 6], "seeds": 6, "stopped": "max-seeds"}), "1")
    write(tmp_path, head(until={"looks": [3, 4], "seeds": 3, "stopped": "narrow"}), "2")
    write(tmp_path, head(), "3")
    assert declared(tmp_path) == {"run-a": (3, 4, 6)}
