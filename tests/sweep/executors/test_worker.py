"""Messages over a pipe, whole however they arrive; and how a cell's failure is told."""

from __future__ import annotations

import errno
import math
import os

import pytest

from normbench.errors import UserError
from normbench.store.files import StoreError
from normbench.sweep.cell import CellResult, cause_of, last_lines
from normbench.sweep.executors.worker import Lines, encoded, receive, send


def test_messages_arrive_whole_whatever_the_cuts():
    messages = [{"event": "progress", "facts": {"loss": 0.5}}, {"text": "ä\nb" * 1000}, {}]
    data = b"".join(encoded(message) for message in messages)
    for size in (1, 7, len(data)):
        lines = Lines()
        got = [m for start in range(0, len(data), size) for m in lines.feed(data[start:][:size])]
        assert got == messages


def test_what_json_has_no_word_for_is_null():
    assert b"null" in encoded({"loss": math.nan})


def test_a_pipe_ends_where_its_writer_is_gone():
    here, there = os.pipe()
    send(there, {"a": 1})
    os.close(there)
    assert list(receive(here)) == [{"a": 1}]
    os.close(here)


def store_error(number):
    try:
        raise OSError(number, os.strerror(number))
    except OSError as error:
        cause = error
    made = StoreError("cannot write")
    made.__cause__ = cause
    return made


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
def test_causes(error, cause):
    assert cause_of(error) == cause


def test_the_lines_that_say_why():
    assert last_lines("a\n\nb\nc\n", 2) == ("b", "c")
    crash = "\n".join(
        ["before", "Fatal Python error: Aborted", *[f"  File {n}" for n in range(40)]]
    )
    assert last_lines(crash, 4) == (
        "before", "Fatal Python error: Aborted", "  File 0", "  File 1"
    )  # fmt: skip


def test_an_ending_survives_the_pipe():
    ending = CellResult("failed", "died", "killed", ("a", "b"), 1.5, 2)
    assert CellResult.from_dict(ending.to_dict()) == ending
