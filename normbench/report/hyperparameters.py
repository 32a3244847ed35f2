"""The hyperparameters of a store, as listed in a paper's appendix: :func:`tables`.

One table lists those that all runs share. Another has a column for each one that differs, and a row
for each combination with the seeds that it was trained with.
"""

from __future__ import annotations

import pandas as pd

from normbench.report import names
from normbench.report.frames import Frames, is_config
from normbench.report.study import ranges
from normbench.report.table import EMPTY, Table, TableEntry

_NOT_HYPERPARAMETERS = frozenset(("label", "store", "seed"))


def tables(frames: Frames) -> list[Table]:
    """Return the table of shared hyperparameters and, if any differ, the table of the others.

    An option that only some runs have, such as ``norm.groups``, counts as different.

    Args:
        frames: The runs; tuning trials are left out.
    """
    runs = frames.runs
    if "trial" in runs:
        runs = runs[~runs["trial"].fillna(False).astype(bool)]
    unused_columns = (
        set() if runs.get("init", pd.Series("")).ne("").any() else {"init", "init_head"}
    )
    columns = [c for c in runs if is_config(c) and c not in _NOT_HYPERPARAMETERS | unused_columns]
    texts = runs[columns].map(_text)
    shared_columns = [column for column in columns if texts[column].nunique() == 1]
    varying_columns = [column for column in columns if column not in shared_columns]
    result = [_shared(texts.iloc[0][shared_columns])]
    if varying_columns:
        result.append(_varying(texts[varying_columns], runs["seed"]))
    return result


def _text(value: object) -> str:
    """Return a value as text; empty if the run has no such option."""
    return "" if pd.isna(value) else names.plain(value)  # pyright: ignore[reportArgumentType]


def _shared(values: pd.Series) -> Table:
    options = values[values != ""]
    return Table(
        "hyperparameters-shared",
        "Hyperparameters that all runs share",
        ("Hyperparameter", "Value"),
        [[TableEntry(str(key)), TableEntry(text)] for key, text in options.items()],
        data=pd.DataFrame({"hyperparameter": options.index, "value": options.to_numpy()}),
    )


def _varying(texts: pd.DataFrame, seeds: pd.Series) -> Table:
    columns = list(texts)
    groups = seeds.groupby([texts[column] for column in columns], sort=False)
    keys = [key if isinstance(key, tuple) else (key,) for key, _ in groups]
    seed_texts = [ranges(set(group)) for _, group in groups]
    data = pd.DataFrame(keys, columns=pd.Index(columns)).assign(seeds=seed_texts)
    rows = [[TableEntry(t) if t else EMPTY for t in row] for row in data.to_numpy().tolist()]
    return Table(
        "hyperparameters-varying",
        "Hyperparameters that differ among the runs",
        (*columns, "Seeds"),
        rows,
        data=data,
    )
