"""Tags and a note that a user adds to a run: :func:`read` and :func:`annotate`.

They are stored in ``annotations.json`` in the run's folder, separately from the run's record:
``tags``, a list of words in alphabetical order, and ``note``, a string. A run without this file has
neither.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from normbench.errors import UserError, unknown
from normbench.store import files, schema
from normbench.store.run import Run

FILE = "annotations.json"

TAG = re.compile(r"[A-Za-z]\w{0,39}", re.ASCII)
"""Form of a tag, chosen so that a filter can name it: ``--where tag.paper``."""

LONGEST_NOTE = 2000

_CHECK = schema.record({}, {"tags": schema.sequence(schema.text()), "note": schema.text()})


@dataclass(frozen=True)
class Annotations:
    """The tags of a run, in alphabetical order, and its note."""

    tags: tuple[str, ...] = ()
    note: str = ""


def read(run: Run) -> Annotations:
    """Return the tags and the note of a run.

    Raises:
        StoreError: The file is damaged or cannot be read.
    """
    path = run.path / FILE
    record = files.read_json(path, _CHECK) or {}
    tags = record.get("tags", [])
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise files.damaged(path, f"{tag!r} is not a tag")
    return Annotations(tuple(sorted(set(tags))), record.get("note", ""))


def annotate(
    run: Run, add: Collection[str] = (), remove: Iterable[str] = (), note: str | None = None
) -> Annotations:
    """Change the tags and the note of a run, and return the new ones.

    Args:
        run: The run; it may be training.
        add: Tags to add.
        remove: Tags to remove.
        note: The new note: an empty string to remove it, None to leave it unchanged.

    Raises:
        UserError: A tag or the note is not allowed, or the run lacks a tag to remove.
        StoreError: The file is damaged or cannot be written.
    """
    check(add, note)
    before = read(run)
    for tag in remove:
        if tag not in before.tags:
            raise unknown(f"tag of {run.name}", tag, before.tags)
    tags = sorted({*before.tags, *add} - set(remove))
    after = Annotations(tuple(tags), before.note if note is None else note)
    if after != before:
        record = {"tags": list(after.tags), "note": after.note}
        files.write_text(run.path / FILE, files.dumps(record, indent=1) + "\n")
    return after


def check(tags: Iterable[str], note: str | None = None) -> None:
    """Refuse invalid tags and a note that is too long.

    Raises:
        UserError: A tag or the note is not allowed.
    """
    for tag in tags:
        if not TAG.fullmatch(tag):
            raise UserError(
                f"{tag!r} is not a tag: use up to 40 letters, digits and _, starting with a letter"
            )
    if note is not None and len(note) > LONGEST_NOTE:
        raise UserError(f"the note has {len(note):,} characters (allowed: {LONGEST_NOTE:,})")
