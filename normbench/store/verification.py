"""``verification.json``: the record of runs that were trained again, in their store's folder.

:func:`read` and :func:`append` are its reader and its writer; :func:`newest` picks the
verifications that still speak of the runs as they are now. `normbench.sweep.verify` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from normbench import formats
from normbench.errors import NormbenchError
from normbench.store import files, records, schema
from normbench.store.files import StoreError
from normbench.store.schema import boolean, integer, mapping, number, record, sequence, text
from normbench.store.store import VERIFICATIONS as NAME
from normbench.store.store import Store

SCHEMA = 1
"""Version of the file's layout. A newer one is refused rather than misread."""

VERDICTS = {
    "equal": "equal to the last bit",
    "within": "under other conditions, within the spread over seeds",
    "unjudged": "under other conditions, without enough seeds to judge by",
    "differs": "not verified",
}
"""Each verdict on a run that was trained again, as a report words it."""

VERIFICATION = record(
    {"run": text(), "verdict": text(*VERDICTS), "time": text(), "record": text(null=True)},
    {
        "reason": text(),
        "differences": mapping(number(0, null=True)),
        "spread": mapping(number(0, null=True)),
        "seeds": integer(0),
        "conditions": sequence(text()),
        "weights": boolean(null=True),
        "commit": text(null=True),
        "dirty": boolean(null=True),
        "versions": mapping(text()),
        "processor": text(null=True),
        "threads": integer(1, null=True),
    },
)
"""A verification. ``record`` is the checksum of the run's ``metrics.jsonl``, ``differences`` and
``spread`` are the largest by curve, ``conditions`` how this machine differs from the recorded one,
``weights`` whether the weights' hashes are equal; the rest is where it was trained again."""

_FILE = record({"schema": integer(1), "verifications": sequence(VERIFICATION)})


def read(store: Store) -> list[dict[str, Any]]:
    """Return the verifications of a store, oldest first.

    Raises:
        StoreError: The file is damaged, or a newer normbench wrote it.
    """
    path = store.root / NAME
    whole = files.read_json(path)
    if whole is None:
        return []
    try:
        value, seals = records.unsealed(NAME, whole)
        if seals is None:
            raise schema.Mismatch("damaged: its checksum is missing")
        if value.get("schema", SCHEMA) != SCHEMA:
            raise schema.Mismatch(
                f"its schema is {value['schema']!r}, this normbench reads {SCHEMA}"
            )
        _FILE(value, "")
    except schema.Mismatch as error:
        raise files.damaged(path, error) from error
    return value["verifications"]


def append(store: Store, verifications: Sequence[Mapping[str, Any]]) -> None:
    """Add verifications to those of a store; the file is replaced atomically.

    Raises:
        StoreError: The file is damaged, or cannot be written.
    """
    value = {"schema": SCHEMA, "verifications": [*read(store), *verifications]}
    whole = records.sealed(NAME, files.jsonable(files.printable(value)), {})
    files.write_text(store.root / NAME, files.dumps(whole, indent=1) + "\n")


def set_damaged_aside(store: Store) -> str:
    """Rename a damaged file, so that a new one can be begun; return a note, "" if it is sound.

    Raises:
        StoreError: It cannot be renamed.
    """
    try:
        read(store)
        return ""
    except StoreError as error:
        path = store.root / NAME
        aside = path.with_name(f".{NAME}.damaged")
        try:
            path.replace(aside)
        except OSError as refusal:
            raise files.store_error("rename", path, refusal) from refusal
        return f"{error}: it is kept as {aside.name}, and a new one is begun"


def newest(store: Store) -> dict[str, dict[str, Any]]:
    """Return the newest verification of each run, by the run's name.

    A verification of metrics that the run no longer has (it was trained again) is left out.

    Raises:
        StoreError: The file is damaged.
    """
    latest = {item["run"]: item for item in read(store)}
    return {name: item for name, item in latest.items() if _is_current(store, name, item)}


def _is_current(store: Store, name: str, verification: Mapping[str, Any]) -> bool:
    try:
        run = store.run(name)
        return run.exists and run.metrics_checksum() == verification["record"]
    except NormbenchError:  # no plain name, or a file that cannot be read
        return False


def counted(verifications: Mapping[str, Mapping[str, Any]], runs: int) -> str:
    """Count verdicts in a sentence, as ``5 of 72 runs trained again: 5 equal to the last bit``.

    Args:
        verifications: The newest verification of each run, by name.
        runs: Number of complete runs.
    """
    return summary([item["verdict"] for item in verifications.values()], runs)


def summary(verdicts: Sequence[str], runs: int, failures: int = 0) -> str:
    """Count verdicts as :func:`counted` does.

    Args:
        verdicts: The verdict on each run that was trained again.
        runs: Number of runs that they are of.
        failures: Number of runs that are damaged or could not be trained again.
    """
    counts = [
        f"{verdicts.count(key)} {words}" for key, words in VERDICTS.items() if key in verdicts
    ]
    counts += [f"{failures} damaged or not trained again"] if failures else []
    head = f"{len(verdicts)} of {formats.counted(runs, 'run')} trained again"
    return f"{head}: {', '.join(counts)}" if counts else head
