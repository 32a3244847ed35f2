"""The logger for TensorBoard: event files in the run's folder."""

from __future__ import annotations

import calendar
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normbench.engine.observer import Logger, flattened, numbers

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.store.run import Run

FOLDER = "tensorboard"

_NOT_COMPARED = ("store", "probe", "logger", "label")
"""Keys of a config that do not affect a run's results."""


class TensorBoard(Logger):
    """Scalars by step, in ``tensorboard/`` in the run's folder.

    ``tensorboard --logdir runs`` shows all runs. The values of the training and validation splits
    are grouped: ``loss/train`` and ``loss/val``. The *HParams* page compares the runs by the keys
    of their configs.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """

    name = "tensorboard"

    def __init__(self) -> None:
        import tensorboard.summary.writer.event_file_writer as writer
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._writer_of: Any = writer.EventFileWriter
        self._event: Any = Event
        self._summary: Any = Summary
        self._api: Any = api_pb2
        self._metadata: Any = metadata
        self._plugin_data: Any = plugin_data_pb2
        self._writer: Any = None

    def start(self, run: Run, config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
        # Rewritten from the run's rows, because an epoch that was lost cannot be removed from an
        # event file.
        folder = run.path / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = self._writer_of(os.fspath(folder))
        self._begin_session(run, config)
        for row in rows:
            self._write(row)
        self._writer.flush()

    def row(self, row: Mapping[str, Any]) -> None:
        self._write(row)
        self._writer.flush()

    def end(self, summary: Mapping[str, Any]) -> None:
        if self._writer is None:  # the run failed before its first step
            return
        values = {key: value for key, value in numbers(summary).items() if key.startswith("test_")}
        self._add(int(summary.get("steps") or 0), time.time(), values)
        self._end_session(summary["status"])
        self._writer.close()

    def _begin_session(self, run: Run, config: Config) -> None:
        """Write the config for the HParams page.

        ``tensorboard.plugins.hparams.summary_v2``, which needs TensorFlow, writes the same.
        """
        start = self._plugin_data.SessionStartInfo(group_name=run.name, start_time_secs=time.time())
        for key, value in flattened(config).items():
            if key.split(".")[0] in _NOT_COMPARED or key.endswith("_target_") or value is None:
                continue
            if isinstance(value, bool):
                start.hparams[key].bool_value = value
            elif isinstance(value, int | float):
                start.hparams[key].number_value = value
            else:
                start.hparams[key].string_value = str(value)
        self._add_session_info(self._metadata.SESSION_START_INFO_TAG, session_start_info=start)

    def _end_session(self, status: str) -> None:
        is_success = status in ("finished", "diverged")
        end = self._plugin_data.SessionEndInfo(
            status=self._api.STATUS_SUCCESS if is_success else self._api.STATUS_FAILURE,
            end_time_secs=time.time(),
        )
        self._add_session_info(self._metadata.SESSION_END_INFO_TAG, session_end_info=end)

    def _add_session_info(self, tag: str, **info: Any) -> None:
        data = self._plugin_data.HParamsPluginData(**info)
        entry = self._summary.Value(
            tag=tag,
            metadata=self._metadata.create_summary_metadata(data),
            tensor=self._metadata.NULL_TENSOR,  # the information is in the metadata
        )
        summary = self._summary(value=[entry])
        self._writer.add_event(self._event(wall_time=time.time(), summary=summary))

    def _write(self, row: Mapping[str, Any]) -> None:
        values = numbers(row)
        step = int(values.pop("step"))
        values.pop("epoch")
        at = calendar.timegm(time.strptime(row["time"], "%Y-%m-%dT%H:%M:%SZ"))
        self._add(step, at, values)

    def _add(self, step: int, at: float, values: Mapping[str, float]) -> None:
        if not values:
            return
        entries = [
            self._summary.Value(tag=_tag(key), simple_value=value) for key, value in values.items()
        ]
        event = self._event(wall_time=at, step=step, summary=self._summary(value=entries))
        self._writer.add_event(event)


def _tag(key: str) -> str:
    split, _, quantity = key.partition("_")
    return f"{quantity}/{split}" if split in ("train", "val", "test") else key
