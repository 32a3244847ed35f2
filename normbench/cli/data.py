"""What `normbench data` does: list the data sets, prepare one, import one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from normbench.data.base import Say, Source, silent


def list_datasets(
    sources: Mapping[str, Source], data_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Return a row a data set, by name.

    Args:
        sources: Source by the name that ``dataset=`` picks.
        data_dir: The data folder; None for the usual one.

    Returns:
        Rows with ``name``, ``title``, ``train`` and ``test`` (images), ``shape`` (height, width,
        channels), ``classes``, ``state`` (``ready``, ``missing``, ``built in`` or ``damaged: …``)
        and ``where`` (a Path, or None).
    """
    return [
        {
            "name": name,
            "title": source.title,
            "train": source.train_count,
            "test": source.test_count,
            "shape": source.shape,
            "classes": source.classes,
            "state": source.state(data_dir),
            "where": source.location(data_dir),
        }
        for name, source in sorted(sources.items())
    ]


def prepare(source: Source, data_dir: str | Path | None = None, say: Say = silent) -> Path | None:
    """Download a data set into the data folder; see `Source.prepare`."""
    return source.prepare(data_dir, say=say)


def import_from(
    source: Source, path: str | Path, data_dir: str | Path | None = None, say: Say = silent
) -> Path | None:
    """Bring a data set from files on disk into the data folder; see `Source.import_from`."""
    return source.import_from(path, data_dir, say=say)
