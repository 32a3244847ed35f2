"""``normbench run --multirun``: Hydra's own sweepers and launchers, each job one run.

For who has a launcher or a sweeper of Hydra's already (joblib, submitit, Optuna). It plans nothing,
retries nothing and records no sweep; :mod:`normbench.sweep` does. Runs and their store are the
same, so that a run which is complete is not trained again here either.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from normbench.cli.run import print_complete
from normbench.config import compose, conf_dir, parse
from normbench.engine.reuse import WarmState
from normbench.errors import UserError, reason
from normbench.overrides import search_path

_warm = WarmState()


def multirun(overrides: Sequence[str], config_dir: str | None) -> None:
    """Have Hydra sweep over overrides.

    Args:
        overrides: Of the runs, as for ``normbench sweep``, and Hydra's own: ``hydra/launcher=…``.
        config_dir: A further folder with config groups.

    Raises:
        UserError: Something asked for does not exist.
        Exception: Of the first run that failed; Hydra's launchers begin the others all the same.
    """
    import hydra
    from hydra.errors import HydraException

    _refuse_unknown(overrides, config_dir)
    # Hydra's parser reads them again: with the quotes that ours puts around what it cannot read.
    arguments = ["--multirun", *(each.input_line for each in parse(overrides))]
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
    """Have Hydra, which asks the process, see these arguments and leave errors to us."""
    from hydra.core.global_hydra import GlobalHydra

    argv, said = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        GlobalHydra.instance().clear()
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if said is not None:
            os.environ["HYDRA_FULL_ERROR"] = said


def _refuse_unknown(overrides: Sequence[str], config_dir: str | None) -> None:
    """Refuse what no job could be made of, as ``normbench sweep`` does, before any is begun."""
    from hydra.core.override_parser.types import ValueType

    from normbench.sweep.grid import expand

    own = [text for text in overrides if not text.lstrip("+~").startswith("hydra")]
    finite = []
    for override in parse(own):
        if override.key_or_group in ("experiment", "executor"):
            raise UserError(f"{override.input_line!r} is for sweeps: normbench sweep takes it")
        # An interval is for a sweeper that draws from it; what it draws is checked in its job.
        if override.value_type != ValueType.INTERVAL_SWEEP:
            finite.append(override.input_line)
    expand(finite, config_dir)


@contextmanager
def _beside_hydra() -> Iterator[None]:
    """Let another config be composed while Hydra runs a job, which it takes for a mistake."""
    from hydra.core.global_hydra import GlobalHydra

    kept = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = kept


def train_job(tree: Any) -> float | None:
    """Train the run of one of Hydra's jobs.

    Returns:
        Its last accuracy on the validation split (0..1), for a sweeper that searches; NaN where it
        diverged.
    """
    from hydra.core.hydra_config import HydraConfig

    from normbench.cli.screen import RunScreen
    from normbench.engine.train import train

    settings = HydraConfig.get()
    logging.getLogger("normbench").propagate = False  # what is for the log file only
    folders = [path.removeprefix("file://") for path in settings.searchpath]
    config_dir = folders[0] if folders else None
    try:
        with _beside_hydra():
            config = compose(list(settings.overrides.task), config_dir)
        if not _warm.has_loop_for(config):
            _warm.drop_loop()
        # Jobs that run side by side cannot share a live line.
        alone = settings.runtime.choices["hydra/launcher"] == "basic"
        with RunScreen(live=None if alone else False) as screen:
            command = ["normbench", "run", *settings.overrides.task]
            outcome = train(config, observer=screen, command=command, warm=_warm)
    except Exception as error:
        _warm.drop_all()
        print(f"normbench: {' '.join(settings.overrides.task)}: {reason(error)}", file=sys.stderr)
        raise
    if not outcome.trained:
        print_complete(config, outcome, config_dir)
    accuracy = outcome.summary.get("val_acc")
    return float("nan") if accuracy is None else float(accuracy)
