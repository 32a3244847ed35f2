"""The logger for MLflow: parameters, metrics and the status of a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.engine.observer import Logger, check_text, final_results, flattened, numbers

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.store.run import Run

_TAG = "normbench.run"
_AT_ONCE = 100  # MLflow's limit on parameters per call; that on metrics is ten times as high


class MLflow(Logger):
    """One MLflow run for each run; a resumed run continues the MLflow run of the same name.

    Args:
        uri: A folder (MLflow's file store), or any other MLflow tracking URI.
        experiment: Name of the MLflow experiment.

    Raises:
        ModuleNotFoundError: MLflow is not installed.
        UserError: ``uri`` or ``experiment`` is empty.
    """

    name = "mlflow"

    def __init__(self, *, uri: str, experiment: str) -> None:
        check_text("mlflow.uri", uri)
        check_text("mlflow.experiment", experiment)
        if "://" not in uri and not uri.startswith("databricks"):
            # MLflow 3 offers its file store only on request; a database needs the full package.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = Path(uri).resolve().as_uri()
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow
        from mlflow.entities import Metric, Param

        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        self._metric: Any = Metric
        self._param: Any = Param
        self._experiment = experiment
        self._id = ""

    def start(self, run: Run, config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
        experiment = self._experiment_id()
        runs = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.name}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            history = self._client.get_metric_history(self._id, "epoch")
            logged_epochs = {int(entry.value) for entry in history}
            rows = [row for row in rows if row["epoch"] not in logged_epochs]
        else:
            created = self._client.create_run(experiment, tags={_TAG: run.name}, run_name=run.name)
            self._id = created.info.run_id
            params = [
                self._param(key, str(value)[:500]) for key, value in flattened(config).items()
            ]
            for first in range(0, len(params), _AT_ONCE):
                self._client.log_batch(self._id, params=params[first : first + _AT_ONCE])
        for row in rows:
            self.row(row)

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is not None:
            return experiment.experiment_id
        try:
            return self._client.create_experiment(self._experiment)
        except Exception:  # another worker was faster
            experiment = self._client.get_experiment_by_name(self._experiment)
            if experiment is None:
                raise
            return experiment.experiment_id

    def row(self, row: Mapping[str, Any]) -> None:
        self._log(numbers(row), int(row["step"]))

    def end(self, summary: Mapping[str, Any]) -> None:
        if not self._id:  # the run failed before its first step
            return
        status = summary["status"]
        self._log(final_results(summary), int(summary.get("steps") or 0))
        ends = {"failed": "FAILED", "interrupted": "KILLED"}
        self._client.set_tag(self._id, "normbench.status", status)
        self._client.set_terminated(self._id, ends.get(status, "FINISHED"))

    def _log(self, values: Mapping[str, float], step: int) -> None:
        at = int(time.time() * 1000)
        metrics = [self._metric(key, value, at, step) for key, value in values.items()]
        for first in range(0, len(metrics), 10 * _AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + 10 * _AT_ONCE])
