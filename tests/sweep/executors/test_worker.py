"""Messages over a pipe, however they are split; and the report of a cell's failure."""

from __future__ import annotations

import errno
import math
import os

import pytest

from normbench.errors import UserError
from normbench.store.files import StoreError
from normbench.sweep.cell import CellResult, cause_of, last_lines
from normbench.sweep.executors.worker import Lines, encoded, receive, send


def test_messages_arrive_complete_however_they_are_split():
    messages = [{"event": "progress", "facts": {"loss": 0.5}}, {"text": "ä\nb" * 1000}, {}]
    data = b"".join(encoded(message) for message in messages)
    for size in (1, 7, len(data)):
        lines = Lines()
        got = [m for start in range(0, len(data), size) for m in lines.feed(data[start:][:size])]
        assert got == messages


def test_values_that_json_cannot_represent_are_null():
    assert b"null" in encoded({"loss": math.nan})


def test_receive_ends_when_the_writer_closes_the_pipe():
    reader, writer = os.pipe()
    send(writer, {"a": 1})
    os.close(writer)
    assert list(receive(reader)) == [{"a": 1}]
    os.close(reader)


def store_error(number):
    try:
        raise OSError(number, os.strerror(number))
    except OSError as error:
        cause = error
    error = StoreError("cannot write")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UserError("no"), "refused"),
        (MemoryError(), "memory"),
        (type("ResourceExhaustedError", (Exception,), {})("OOM"), "memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"), "memory"),
        (store_error(errno.ENOSPC), "disk"),
        (store_error(errno.EDQUOT), "disk"),
        (store_error(errno.EACCES), "error"),
        (ValueError("x"), "error"),
    ],
)
def test_cause_of_an_error(error, cause):
    assert cause_of(error) == cause


def test_last_lines_keep_the_reason_of_a_crash():
    assert last_lines("a\n\nb\nc\n", 2) == ("b", "c")
    crash = "\n".join(
        ["before", "Fatal Python error: Aborted", *[f"  File {n}" for n in range(40)]]
    )
    assert last_lines(crash, 4) == (
        "before", "Fatal Python error: Aborted", "  File 0", "  File 1"
    )  # fmt: skip


def test_cell_result_survives_serialization():
    ending = CellResult("failed", "died", "killed", ("a", "b"), 1.5, 2)
    assert CellResult.from_dict(ending.to_dict()) == ending
