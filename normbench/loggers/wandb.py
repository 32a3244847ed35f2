"""The logger for Weights & Biases: config, metrics and the status of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.engine.observer import Logger, check_text, final_results, numbers
from normbench.errors import UserError, unknown

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.store.run import Run

MODES = ("online", "offline")

_EXIT_CODES = {"failed": 1, "interrupted": 255}
_LONGEST_ID = 64


class WandB(Logger):
    """One W&B run for each run, with the run's name as its id, so that a resumed run continues it.

    Offline, each session rewrites the W&B run with the rows of all sessions, as ``offline-run-…``
    in a folder ``wandb``; ``wandb sync`` uploads it.

    Args:
        project: Name of the W&B project.
        entity: User or team; None for the one that is logged in.
        mode: ``online`` or ``offline``.
        path: Folder in which to create the folder ``wandb``; None for the run's folder.

    Raises:
        ModuleNotFoundError: wandb is not installed.
        UserError: An option has an invalid value, or nobody is logged in to W&B.
    """

    name = "wandb"

    def __init__(
        self,
        *,
        project: str,
        entity: str | None = None,
        mode: str = "online",
        path: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise unknown("logger.wandb.mode", str(mode), MODES)
        check_text("wandb.project", project)
        for option, value in (("entity", entity), ("path", path)):
            if value is not None:
                check_text(f"wandb.{option}", value)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if mode == "online" and not wandb.api.api_key:
            raise UserError(
                "logger=wandb: nobody is logged in to W&B: run `wandb login`, set WANDB_API_KEY, "
                "or use logger.wandb.mode=offline"
            )
        self._wandb: Any = wandb
        self._project = project
        self._entity = entity
        self._offline = mode == "offline"
        self._path = path
        self._run: Any = None

    def start(self, run: Run, config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
        folder = Path(run.path if self._path is None else self._path).expanduser().resolve()
        files = folder / "wandb"
        files.mkdir(parents=True, exist_ok=True)
        # W&B's service writes its own log, by default in the user's home.
        os.environ.setdefault("WANDB_CACHE_DIR", str(files / "cache"))
        name = run.name[-_LONGEST_ID:]  # a name ends in the signature, which is unique
        if self._offline:
            for old_folder in files.glob(f"offline-run-*-{name}"):
                shutil.rmtree(old_folder, ignore_errors=True)
        self._run = self._wandb.init(
            project=self._project,
            entity=self._entity,
            id=name,
            name=run.name,
            group=run.name.rpartition("-s")[0],  # runs that differ only in the seed
            config=config.to_dict(),
            dir=str(folder),
            mode="offline" if self._offline else "online",
            resume=None if self._offline else "allow",
            reinit="create_new",  # no hooks into this process, which may train other runs later
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                # normbench itself records the code and the machine, and steps must not slow down.
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        first = self._run.step if self._run.resumed else 0  # W&B rejects earlier steps
        for row in rows:
            if row["step"] >= first:
                self.row(row)

    def row(self, row: Mapping[str, Any]) -> None:
        values = numbers(row)
        self._run.log(values, step=int(values.pop("step")))

    def end(self, summary: Mapping[str, Any]) -> None:
        if self._run is None:  # the run failed before its first step
            return
        self._run.summary.update({**final_results(summary), "status": summary["status"]})
        self._run.finish(exit_code=_EXIT_CODES.get(summary["status"], 0))
