"""The files of a run folder: the keys and values that each may have, and their checksums.

``meta.json`` and ``summary.json`` end in ``checksums``, a mapping from file names to SHA-256
digests. Both include the digest of ``config.yaml``, and the summary that of ``metrics.jsonl``, as
``sha256sum`` prints them. The entry under the file's own name is the digest of its own content,
written as compact JSON with sorted keys and without this entry. A line of ``diagnosis.jsonl`` has a
``checksum`` of itself and of the checksum on the previous line, so that a missing line is detected
unless it was the last. Files that are still being written to (``log.txt``, and ``metrics.jsonl``
until there is a summary) have no checksum.

Folders of earlier versions have no checksums. Their values are checked against ranges, and their
files against each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from normbench.store.schema import (
    Mismatch,
    boolean,
    integer,
    mapping,
    number,
    record,
    sequence,
    text,
)

SEALS = "checksums"
LINE_SEAL = "checksum"

_accuracy = number(0, 1, null=True)
# Cross-entropy is not negative, but a float32 mean of many zeros may round to just below zero.
_loss = number(-1e-3, null=True)
_amount = number(0, null=True)
_count = integer(0, null=True)
_git = record({}, {"commit": text(null=True), "dirty": boolean(null=True)}, null=True)

_group = record({}, {"name": text(), "_target_": text(null=True)})

#: How reports show the values of probes, by column: ``probe/<probe>/<name>``.
_probe_values = mapping(
    record(
        {"label": text()},
        {
            "unit": text(),
            "scale": number(),
            "digits": integer(0, 17),
            "higher_is_better": boolean(null=True),
            "curve": text("", "linear", "log"),
        },
    ),
    null=True,
)

CONFIG = record(
    {},
    {
        "signature": text(),
        "schema": integer(1),
        **dict.fromkeys(("dataset", "arch", "optimizer", "schedule"), _group),
        "norm": record({}, {"name": text(), "_target_": text(null=True), "weight": _group}),
        **dict.fromkeys(("batch", "epochs"), integer(1)),
        "seed": integer(0),
        **dict.fromkeys(("probe", "logger"), mapping(mapping())),
        **dict.fromkeys(("store", "label", "init", "init_head"), text()),
    },
)

META = record(
    {},
    {
        "status": text(),
        "signature": text(),
        "schema": integer(1),
        **dict.fromkeys(("started", "ended", "host", "processor"), text(null=True)),
        **dict.fromkeys(("git", "git_folder"), _git),
        "versions": mapping(text(), null=True),
        "engine": mapping(null=True),
        "own": mapping(sequence(text()), null=True),
        "probe_values": _probe_values,
        **dict.fromkeys(("command", "devices"), sequence(text(), null=True)),
        "tuned": record(
            {
                **dict.fromkeys(("sweep", "metric"), text()),
                "values": mapping(),
                "trials": sequence(text()),
            },
            null=True,
        ),
        "micro_batches": sequence(
            record({"epoch": integer(0), "count": integer(1)}), least=1, null=True
        ),
        "init": record({"run": text(), "weights_sha256": text()}, null=True),
        "streamed": boolean(),
        "continues": record({"run": text(), "epochs": integer(1)}, null=True),
        "error": record({"type": text(), "message": text()}, null=True),
        "sessions": sequence(
            record(
                {},
                {
                    **dict.fromkeys(("started", "ended", "host"), text(null=True)),
                    "pid": integer(0),
                    "from_epoch": integer(0),
                    "seconds": _amount,
                    "run": text(),
                },
            ),
            null=True,
        ),
    },
)

_RESULTS = {
    **dict.fromkeys(
        ("train_acc", "val_acc", "test_acc", "best_val_acc", "best_val_test_acc"), _accuracy
    ),
    **dict.fromkeys(("train_loss", "val_loss", "test_loss", "best_val_test_loss"), _loss),
    **dict.fromkeys(("epochs", "steps", "images_seen", "parameters"), _count),
    **dict.fromkeys(("best_val_epoch", "diverged_epoch", "diverged_step"), _count),
    **dict.fromkeys(("train_seconds", "wall_seconds", "images_per_s"), _amount),
    **dict.fromkeys(("classes", "micro_batches"), integer(1, null=True)),
    "weights_sha256": text(null=True),
}

_DIVERGED = record({"status": text("diverged")}, _RESULTS)
# In a run that did not diverge, the loss on held-out images may overflow, but not that in training.
_FINISHED = record(
    {"status": text("finished")},
    {**_RESULTS, **dict.fromkeys(("train_acc", "val_acc", "test_acc"), number(0, 1)),
     "train_loss": number(-1e-3)},
)  # fmt: skip


def SUMMARY(value: Any, position: str) -> None:
    """Check a summary; if the run finished, accuracies and the training loss must be numbers."""
    record({"status": text("finished", "diverged")})(value, position)
    (_FINISHED if value["status"] == "finished" else _DIVERGED)(value, position)


EPOCH = record(
    {"epoch": integer(1)},
    {
        **dict.fromkeys(("step", "images_seen"), _count),
        **dict.fromkeys(("train_acc", "val_acc"), _accuracy),
        **dict.fromkeys(("train_loss", "val_loss"), _loss),
        **dict.fromkeys(("lr", "grad_norm", "grad_norm_max", "images_per_s"), _amount),
        **dict.fromkeys(("train_seconds", "eval_seconds"), _amount),
        "time": text(null=True),
    },
)

_DIAGNOSIS = {
    "epoch": integer(0),
    "step": integer(0),
    "probe": text(),
    "values": mapping(number(null=True)),
}
_ABOUT_DIAGNOSIS = {
    "checkpoint": text("last", "best"),
    "options": mapping(),
    "time": text(null=True),
    "commit": text(null=True),
    "probe_values": _probe_values,
}

DIAGNOSIS = record(_DIAGNOSIS, _ABOUT_DIAGNOSIS)
#: A line of an earlier version, which has no checksum. Other keys are forbidden, so that a newer
#: line with a damaged ``checksum`` key is not mistaken for an old one.
_OLD_DIAGNOSIS = record(_DIAGNOSIS, _ABOUT_DIAGNOSIS, others=None)

CHECKPOINT = record(
    {},
    {
        **dict.fromkeys(("epoch", "step"), integer(0)),
        "partial_seconds": number(0),
        "metrics_sha256": text(),
        "best": record({}, {"epoch": _count, "val_acc": _accuracy}),
    },
)

OWNER = record(
    {}, {"host": text(), "pid": integer(0), "started": text(), "command": sequence(text())}
)


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    return hashlib.sha256(data).hexdigest()


def _digest_of(value: Mapping[str, Any]) -> str:
    # Compact ASCII JSON: equal values give equal bytes, however the file is formatted.
    return digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sealed(name: str, value: Mapping[str, Any], others: Mapping[str, str]) -> dict[str, Any]:
    """Return a record with its checksums.

    Args:
        name: Name of the record's file.
        value: The record, of JSON types only.
        others: The checksums of other files, by name.
    """
    content = {**value, SEALS: dict(others)}
    return {**value, SEALS: {**others, name: _digest_of(content)}}


def unsealed(name: str, value: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return a record without its checksums, and those of other files (None if it has none).

    Raises:
        Mismatch: Its own checksum does not match.
    """
    value = dict(value)
    seals = value.pop(SEALS, None)
    if seals is None:
        return value, None
    mapping(text())(seals, SEALS)
    other_seals = {file: seal for file, seal in seals.items() if file != name}
    if seals.get(name) != _digest_of({**value, SEALS: other_seals}):
        raise Mismatch("damaged: its content does not match its checksum")
    return value, other_seals


def sealed_line(value: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a line of ``diagnosis.jsonl`` with its checksum.

    Args:
        value: The record, of JSON types only.
        before: The previous line; None for the first line.
    """
    content = {**value, LINE_SEAL: (before or {}).get(LINE_SEAL)}
    return {**value, LINE_SEAL: _digest_of(content)}


def unsealed_diagnoses(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Check the lines of ``diagnosis.jsonl``, and return them without their checksums.

    Raises:
        Mismatch: A line is damaged, is not a diagnosis, or is missing.
    """
    diagnoses = []
    for count, line in enumerate(lines, start=1):
        value = {key: item for key, item in line.items() if key != LINE_SEAL}
        try:
            (DIAGNOSIS if LINE_SEAL in line else _OLD_DIAGNOSIS)(value, "")
        except Mismatch as error:
            raise Mismatch(f"line {count}: {error}") from None
        previous = lines[count - 2] if count > 1 else None
        if LINE_SEAL in line and line != sealed_line(value, previous):
            raise Mismatch(
                f"line {count} does not match its checksum: it or an earlier line is damaged"
            )
        diagnoses.append(value)
    return diagnoses


def check_epochs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that ``metrics.jsonl`` has one row for each epoch, in order from the first.

    Raises:
        Mismatch: A row is missing, or an epoch has two.
    """
    for expected, row in enumerate(rows, start=1):
        if row["epoch"] != expected:
            raise Mismatch(f"line {expected} has epoch {row['epoch']}, not {expected}")


def check_agreement(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that a summary without checksums has a test accuracy and agrees with the last row.

    Raises:
        Mismatch: It lacks the test accuracy, or they differ.
    """
    if summary["status"] == "finished" and "test_acc" not in summary:
        raise Mismatch("summary.json lacks test_acc")
    last = rows[-1] if rows else {}
    for name, row_name in (
        ("epochs", "epoch"),
        ("steps", "step"),
        *((key, key) for key in ("images_seen", "train_loss", "train_acc", "val_loss", "val_acc")),
    ):
        if name in summary and summary[name] is not None and summary[name] != last.get(row_name):
            raise Mismatch(
                f"its last {row_name} is {last.get(row_name)}, summary.json says {summary[name]}"
            )
