"""``normbench run --multirun``: Hydra's own sweepers and launchers, with one run per job.

For users who already use a Hydra launcher or sweeper (joblib, submitit, Optuna). Unlike
:mod:`normbench.sweep`, it has no plan, no retries and no record of the sweep. Runs and their store
are the same, so a complete run is not trained again here either.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normbench.config import compose, conf_dir, parse
from normbench.engine.reuse import WarmState
from normbench.errors import UserError, reason
from normbench.overrides import search_path

_warm = WarmState()


def multirun(overrides: Sequence[str], config_dir: str | None) -> None:
    """Let Hydra sweep over overrides.

    Args:
        overrides: Overrides as for ``normbench sweep``, and Hydra's own: ``hydra/launcher=…``.
        config_dir: Additional folder of config groups, laid out like ``conf/``.

    Raises:
        UserError: An override names something that does not exist.
        Exception: The error of the first run that failed; the other runs are started anyway.
    """
    import hydra
    from hydra.errors import HydraException

    _refuse_unknown(overrides, config_dir)
    # Hydra parses the overrides again, so pass them with the quotes that `parse` added.
    arguments = ["--multirun", *(override.input_line for override in parse(overrides))]
    if config_dir is not None:
        arguments.append(search_path(str(Path(config_dir).resolve())))
    start = hydra.main(str(conf_dir()), "config", version_base="1.3")(train_job)
    with _called_with(arguments):
        try:
            start()
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from None


@contextmanager
def _called_with(arguments: list[str]) -> Iterator[None]:
    """Present these arguments to Hydra as ``sys.argv``, and make Hydra raise errors."""
    from hydra.core.global_hydra import GlobalHydra

    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _refuse_unknown(overrides: Sequence[str], config_dir: str | None) -> None:
    """Refuse overrides that cannot form a job, before any job starts."""
    from hydra.core.override_parser.types import ValueType

    from normbench.sweep.grid import expand

    of_runs = [text for text in overrides if not text.lstrip("+~").startswith("hydra")]
    finite = []
    for override in parse(of_runs):
        if override.key_or_group in ("experiment", "executor"):
            raise UserError(f"{override.input_line!r} is for sweeps: normbench sweep takes it")
        # A sweeper draws values from an interval; each is checked in its job.
        if override.value_type != ValueType.INTERVAL_SWEEP:
            finite.append(override.input_line)
    expand(finite, config_dir)


@contextmanager
def _beside_hydra() -> Iterator[None]:
    """Allow composing another config while Hydra runs a job, which Hydra would refuse."""
    from hydra.core.global_hydra import GlobalHydra

    instance = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = instance


def train_job(tree: Any) -> float | None:
    """Train the run of one of Hydra's jobs.

    Returns:
        The last validation accuracy (0 to 1), for a sweeper that searches; NaN if the run diverged.
    """
    from hydra.core.hydra_config import HydraConfig

    from normbench.cli.screen import RunScreen, print_complete
    from normbench.engine.train import train

    settings = HydraConfig.get()
    logging.getLogger("normbench").propagate = False  # these records are for log.txt only
    folders = [path.removeprefix("file://") for path in settings.searchpath]
    config_dir = folders[0] if folders else None
    try:
        with _beside_hydra():
            config = compose(list(settings.overrides.task), config_dir)
        if not _warm.has_loop_for(config):
            _warm.drop_loop()
        # Concurrent jobs cannot share a live line.
        is_sequential = settings.runtime.choices["hydra/launcher"] == "basic"
        with RunScreen(live=None if is_sequential else False) as screen:
            command = ["normbench", "run", *settings.overrides.task]
            result = train(config, observer=screen, command=command, warm=_warm)
    except Exception as error:
        _warm.drop_all()
        print(f"normbench: {' '.join(settings.overrides.task)}: {reason(error)}", file=sys.stderr)
        raise
    if not result.trained:
        print_complete(config, result, config_dir)
    accuracy = result.summary.get("val_acc")
    return float("nan") if accuracy is None else float(accuracy)
