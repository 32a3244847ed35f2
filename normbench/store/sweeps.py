"""``sweep.json``, the record of a sweep: :func:`read` returns its checked content.

A sweep writes the file (:class:`normbench.sweep.record.Record`). Resumed sweeps, ``sweep status``
and the report all read it through this module, so that a damaged record is refused everywhere with
the same message. Keys that later versions added are filled in if an older record lacks them; keys
that every version has written are required.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normbench.store import files, schema
from normbench.store.schema import boolean, integer, mapping, number, record, sequence, text
from normbench.store.store import SWEEPS

FILE = "sweep.json"

SCHEMA = 1
"""Version of the file's layout. A newer one is refused rather than misread."""

STOPPED = ("", "narrow", "max-seeds")
"""Reasons why a sweep with ``--until`` adds no more seeds after a look; "" if it does add some."""


def _folder_name(value: Any, position: str) -> None:
    """Allow only a plain folder name, which cannot lead out of the store."""
    text()(value, position)
    if value in ("", ".", "..") or "/" in value or "\0" in value:
        raise schema.Mismatch(f"{position} is {value!r}, not the plain name of a folder")


_UNTIL_KEYS = record(
    {
        "looks": sequence(integer(2), least=1),
        "seeds": integer(2),
        "stopped": text(*STOPPED),
    },
    {"text": text()},
)


def _until(value: Any, position: str) -> None:
    """Allow a look of a sweep with ``--until`` only if it is one of those declared beforehand."""
    _UNTIL_KEYS(value, position)
    looks = value["looks"]
    if sorted(set(looks)) != looks:
        raise schema.Mismatch(f"{position}.looks is {looks}, not in ascending order")
    if value["seeds"] not in looks:
        raise schema.Mismatch(f"{position}.seeds is {value['seeds']}, not one of the looks {looks}")


_CELL = record(
    {
        "name": _folder_name,
        **dict.fromkeys(("state", "reason"), text()),
        "todo": boolean(),
        "seconds": number(0, null=True),
    },
    {"differs": text()},
)

_HEAD = record(
    {
        "started": text(),
        **dict.fromkeys(("ended", "result"), text(null=True)),
        "command": sequence(text()),
        "cells": sequence(_CELL),
    },
    {"schema": integer(1), "host": text(null=True), "executor": mapping(), "until": _until},
)


def read(folder: Path) -> dict[str, Any] | None:
    """Return the content of the ``sweep.json`` in the folder of a record; None if there is none.

    Each of its ``cells`` has ``differs``, which is empty in records of early versions.

    Raises:
        StoreError: The file is damaged or cannot be read, or a newer normbench wrote it.
    """
    path = folder / FILE
    head = files.read_json(path)
    if head is None:
        return None
    try:
        schema.check_version(head, SCHEMA)
        _HEAD(head, "")
    except schema.Mismatch as error:
        raise files.damaged(path, error) from error
    return {**head, "cells": [{"differs": "", **cell} for cell in head["cells"]]}


def folders(root: Path) -> list[Path]:
    """Return the folders of the sweep records in a store, oldest first.

    Args:
        root: The folder of the store.
    """
    return [path.parent for path in sorted((root / SWEEPS).glob(f"*/{FILE}"))]


def read_all(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of each sweep record in a store, oldest first.

    Args:
        root: The folder of the store.

    Raises:
        StoreError: As for :func:`read`.
    """
    for folder in folders(root):
        if (head := read(folder)) is not None:
            yield head
