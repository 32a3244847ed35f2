"""``normbench export``: write all results as one table, or the trained network of a run."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import (
    RUN_NAMES,
    WHERE,
    Parser,
    add_config_dir,
    add_store,
    add_style,
    add_superseded,
    quiet_tensorflow,
    store_of,
    stores_of,
)
from normbench.errors import UserError
from normbench.report.venues import DEFAULT

_TABLE, _HYPERPARAMETERS = "runs.csv", "hyperparameters.md"
_EPILOG = f"""\
The table has a row for each cell of the stores. With --model, the trained network of one RUN is
written instead; RUN is a {RUN_NAMES}, or the path of a run folder.
The model maps images in 0-255 to logits. Keras loads it after `import normbench.norms`; with
--plain it does not need normbench:
  normbench export RUN --model model.keras --plain"""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="STORE|RUN",
        help="folders of runs (instead of --store), or a run",
    )
    parser.add_argument("--where", metavar="FILTER", help=WHERE)
    parser.add_argument(
        "--hyperparameters",
        action="store_true",
        help="write hyperparameters instead: those that all runs share, and those that differ",
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"table to write (default: {_TABLE}, or {_HYPERPARAMETERS})"
    )
    parser.add_argument("--model", metavar="FILE", help="write the trained network of RUN to FILE")
    parser.add_argument(
        "--plain", action="store_true", help="with --model: use only Keras's own layers"
    )
    parser.add_argument(
        "--format",
        help="csv, md, tex or parquet; for a model keras, savedmodel or onnx "
        "(default: the suffix of the file)",
    )
    add_style(parser, "LaTeX tables")
    add_superseded(parser)
    add_store(parser)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    if arguments.model is not None:
        _export_model(arguments)
        return 0
    for option in ("plain", "config_dir"):
        if getattr(arguments, option):
            raise UserError(f"--{option.replace('_', '-')} is for a model: give --model FILE, too")
    from normbench.report.report import export

    default = _HYPERPARAMETERS if arguments.hyperparameters else _TABLE
    out = default if arguments.out is None else arguments.out
    export(
        stores_of(arguments),
        arguments.where,
        out,
        arguments.format,
        superseded=arguments.superseded,
        hyperparameters=arguments.hyperparameters,
        style=arguments.style,
    )
    return 0


def _export_model(arguments: Namespace) -> None:
    for option in ("where", "out"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option} is for the table: --model FILE names the model's file")
    if arguments.hyperparameters:
        raise UserError("--hyperparameters is a table: --model FILE writes a network")
    if arguments.superseded:
        raise UserError("--superseded is for the table: --model FILE names the model's file")
    if arguments.style != DEFAULT:
        raise UserError("--style is for the table: --model FILE names the model's file")
    if len(arguments.folders) != 1:
        count_note = f", not {len(arguments.folders)}" if arguments.folders else ""
        raise UserError(f"export --model needs one run{count_note}: its {RUN_NAMES}")
    quiet_tensorflow()
    from normbench.engine.export import export

    export(
        arguments.folders[0],
        arguments.model,
        store_of(arguments),
        format=arguments.format,
        plain=arguments.plain,
        config_dir=arguments.config_dir,
        say=lambda line: print(line, file=sys.stderr if line.startswith("note:") else sys.stdout),
    )


def writes(arguments: Namespace) -> bool:
    return True
