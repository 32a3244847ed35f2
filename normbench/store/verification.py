"""``verification.json``: comparisons of runs with the same runs trained again.

The file is in the store's folder. `normbench.sweep.verify` adds comparisons with :func:`append`;
:func:`newest` returns those that still apply to the current runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from normbench import formats
from normbench.errors import NormbenchError
from normbench.store import files, records, schema
from normbench.store.files import StoreError
from normbench.store.schema import boolean, integer, mapping, number, record, sequence, text
from normbench.store.store import VERIFICATIONS as NAME
from normbench.store.store import Run, Store

SCHEMA = 1
"""Version of the file's layout. A newer one is refused rather than misread."""

VERDICTS = {
    "equal": "equal to the last bit",
    "within": "under other conditions, within the spread over seeds",
    "unjudged": "under other conditions, without enough seeds to judge by",
    "differs": "not verified",
}
"""The verdicts on runs that were trained again, with their wording in reports."""

VERIFICATION = record(
    {"run": text(), "verdict": text(*VERDICTS), "time": text(), "record": text(null=True)},
    {
        "reason": text(),
        "differences": mapping(number(0, null=True)),
        "spread": mapping(number(0, null=True)),
        "seeds": integer(0),
        "conditions": sequence(text()),
        "weights": boolean(null=True),
        **dict.fromkeys(("folder", "code"), text()),
        "commit": text(null=True),
        "dirty": boolean(null=True),
        "versions": mapping(text()),
        "processor": text(null=True),
        "threads": integer(1, null=True),
    },
)
"""One comparison. ``record`` is the checksum of the run's ``metrics.jsonl`` and ``folder`` that of
all its records (:func:`fingerprint`), which earlier versions did not write. ``differences`` and
``spread`` are the maxima for each curve, ``conditions`` lists how this machine differs from the
recorded one, and ``weights`` is whether the weights' hashes are equal. The other keys describe the
code and the machine with which the run was trained again."""

_FILE = record({"schema": integer(1), "verifications": sequence(VERIFICATION)})


def read(store: Store) -> list[dict[str, Any]]:
    """Return the comparisons of a store, oldest first.

    Raises:
        StoreError: The file is damaged, or a newer normbench wrote it.
    """
    path = store.root / NAME
    content = files.read_json(path)
    if content is None:
        return []
    try:
        value, seals = records.unsealed(NAME, content)
        if seals is None:
            raise schema.Mismatch("damaged: its checksum is missing")
        schema.check_version(value, SCHEMA)
        _FILE(value, "")
    except schema.Mismatch as error:
        raise files.damaged(path, error) from error
    return value["verifications"]


def append(store: Store, verifications: Sequence[Mapping[str, Any]]) -> None:
    """Add comparisons to those of a store.

    The file is replaced atomically, so a process that dies meanwhile leaves either the old
    comparisons or all of them. If two processes appended at the same time, one's comparisons would
    be lost; the lock of `normbench.sweep.verify` prevents that.

    Raises:
        StoreError: The file is damaged, or cannot be written.
    """
    value = {"schema": SCHEMA, "verifications": [*read(store), *verifications]}
    content = records.sealed(NAME, files.jsonable(files.printable(value)), {})
    files.write_text(store.root / NAME, files.dumps(content, indent=1) + "\n")


def set_damaged_aside(store: Store) -> str:
    """Rename the file if it is damaged, so that a new one can be started.

    Returns:
        A sentence with the damage and the new name; "" if there is no damage.

    Raises:
        StoreError: It cannot be renamed.
    """
    try:
        read(store)
        return ""
    except StoreError as error:
        path = store.root / NAME
        target = path.with_name(f".{NAME}.damaged")
        try:
            path.replace(target)
        except OSError as refusal:
            raise files.store_error("rename", path, refusal) from refusal
        return f"{error}: it was renamed to {target.name}, and a new file is started"


def newest(store: Store) -> dict[str, dict[str, Any]]:
    """Return the newest comparison of each run, by the run's name.

    It is left out if the run has changed since, because it was trained again or edited.

    Raises:
        StoreError: The file is damaged.
    """
    latest = {item["run"]: item for item in read(store)}
    return {name: item for name, item in latest.items() if _is_current(store, name, item)}


def _is_current(store: Store, name: str, comparison: Mapping[str, Any]) -> bool:
    try:
        run = store.run(name)
        if not run.exists or run.metrics_checksum() != comparison["record"]:
            return False
        return "folder" not in comparison or fingerprint(run) == comparison["folder"]
    except NormbenchError:  # not a plain name, or a file that cannot be read
        return False


def fingerprint(run: Run) -> str:
    """Return the SHA-256 of all records of a run that a comparison depends on, in hex.

    Logs, checkpoints and diagnoses are left out, and so is the note on tuning trials that a sweep
    may add to ``meta.json`` long after the run has ended.

    Raises:
        StoreError: A file is damaged or cannot be read.
    """
    config = files.read_bytes(run.path / "config.yaml") or b""
    meta = {key: value for key, value in (run.meta or {}).items() if key != "tuned"}
    parts = [records.digest(config), run.metrics_checksum(), run.summary, meta]
    return records.digest(json.dumps(parts, sort_keys=True).encode())


def counted(verifications: Mapping[str, Mapping[str, Any]], runs: int) -> str:
    """Summarize verdicts, as in ``5 of 72 runs trained again: 5 equal to the last bit``.

    Args:
        verifications: The newest comparison of each run, by name.
        runs: Number of complete runs.
    """
    return summary([item["verdict"] for item in verifications.values()], runs)


def summary(verdicts: Sequence[str], runs: int, failures: int = 0) -> str:
    """Summarize verdicts as :func:`counted` does.

    Args:
        verdicts: The verdict on each run that was trained again.
        runs: Number of runs, including those that were not trained again.
        failures: Number of runs that are damaged or could not be trained again.
    """
    counts = [
        f"{verdicts.count(key)} {words}" for key, words in VERDICTS.items() if key in verdicts
    ]
    counts += [f"{failures} damaged or not trained again"] if failures else []
    head = f"{len(verdicts)} of {formats.counted(runs, 'run')} trained again"
    return f"{head}: {', '.join(counts)}" if counts else head
