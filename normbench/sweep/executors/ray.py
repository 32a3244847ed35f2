"""The executor that trains the cells of a sweep as Ray tasks, here or on a cluster."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from normbench.config import Config
from normbench.errors import NormbenchError, UserError
from normbench.sweep.cell import CellResult
from normbench.sweep.executors.base import SweepContext, int_option
from normbench.sweep.executors.remote import Remote, remote_cell, remote_refusals
from normbench.sweep.plan import PlannedCell


class RayExecutor(Remote):
    """Trains each cell as a Ray task; Ray queues, places and retries the tasks.

    Ray restarts a cell whose worker or node died, possibly on another node, and the cell continues
    from its checkpoint. Tasks that use a GPU get a process of their own, because TensorFlow
    releases GPU memory only when its process ends. Other tasks reuse processes and the programs
    they have compiled.

    Args:
        address: Address of a cluster, such as ``host:6379``, or ``auto`` for one that was started
            on this machine; None to start Ray here for this sweep. A cluster with token
            authentication, which recent versions of Ray enable if they find a token, also needs
            the token and ``RAY_AUTH_MODE=token`` in the environment; ``auto`` and None find the
            token by themselves.
        cpus_per_run: Number of cores that Ray reserves for a cell, and of its threads.
        gpus_per_run: Fraction of a GPU, or a whole number of GPUs; 0 for none.
        retries: Number of times that Ray tries a cell again after its worker or its node died.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        cpus_per_run: int = 1,
        gpus_per_run: float = 0,
        retries: int = 2,
    ) -> None:
        self._cpus = int_option("cpus_per_run", cpus_per_run, 1)
        self._retries = int_option("retries", retries, 0)
        fraction = isinstance(gpus_per_run, int | float) and not isinstance(gpus_per_run, bool)
        if not fraction or gpus_per_run < 0 or (gpus_per_run > 1 and gpus_per_run % 1):
            raise UserError(
                "executor.gpus_per_run must be a share up to 1 or a whole number, "
                f"got {gpus_per_run!r}"
            )
        self._gpus = gpus_per_run
        self._address = address
        try:
            import ray
        except ModuleNotFoundError:
            raise UserError("executor=ray needs Ray: pip install 'normbench[ray]'") from None
        self._ray: Any = ray
        self._started = False

    def allocate(self, count: int) -> list[str]:
        ray = self._ray
        if not ray.is_initialized():
            # Ray's workers search the same folders for modules as this process. The working folder
            # comes last, for the user's own modules.
            paths = [path or str(Path.cwd()) for path in (*sys.path, "")]
            self._init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                runtime_env={
                    "env_vars": {**handed_on(os.environ), "PYTHONPATH": os.pathsep.join(paths)}
                },
            )
            self._started = True
        resources = ray.cluster_resources()
        room = int(resources.get("CPU", 0) // self._cpus)
        if self._gpus:
            room = min(room, int(resources.get("GPU", 0) / self._gpus))
        if room < 1:
            raise UserError(
                f"Ray has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs, "
                f"but a run needs {self._cpus} and {self._gpus:g}"
            )
        return [f"ray {index}" for index in range(min(room, count))]

    def _init(self, **options: Any) -> None:
        """Start Ray on this machine, or connect to the cluster at the address.

        Raises:
            NormbenchError: There is no such cluster, or it needs a token.
        """
        address = self._address
        if address is None:
            self._ray.init(address="local", **options)
            return
        _refuse_unreachable(address)
        try:
            with _silent_native_log():  # Ray's library prints a line every second while it tries
                self._ray.init(address=address, **options)
        except Exception as error:
            reasons = " ".join(map(str, (error, error.__cause__, error.__context__)))
            if any(word in reasons for word in ("Unauthenticated", "AuthToken", "authentication")):
                raise NormbenchError(
                    f"the Ray cluster at {address} requires an authentication token: set "
                    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints "
                    "on its head node (unless ~/.ray/auth_token has it); for a cluster that was "
                    "started on this machine executor.address=auto finds the token by itself"
                ) from error
            message = f"cannot use the Ray cluster at {address}: {_first_line(error)}"
            raise NormbenchError(message) from error

    def check(self, configs: Sequence[Config]) -> list[str]:
        problems: list[str] = [""] * len(configs)
        for backend in sorted({config.backend for config in configs}):
            indices = [i for i, config in enumerate(configs) if config.backend == backend]
            task = self._remote(remote_refusals, backend)
            trees = [configs[index].to_dict() for index in indices]
            for index, problem in zip(indices, self._ray.get(task.remote(trees)), strict=True):
                problems[index] = problem
        return problems

    def submit(self, cells: Sequence[PlannedCell], context: SweepContext) -> list[Any]:
        backends = {cell.config.backend for cell in cells}
        tasks = {backend: self._remote(remote_cell, backend) for backend in backends}
        return [tasks[cell.config.backend].remote(context.order(cell)) for cell in cells]

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        done_handles, _ = self._ray.wait(list(handles), num_returns=len(handles), timeout=seconds)
        return done_handles

    def result(self, handle: Any) -> CellResult:
        from ray import exceptions

        try:
            return CellResult.from_dict(self._ray.get(handle))
        except exceptions.TaskCancelledError:
            return CellResult("interrupted")
        except exceptions.OutOfMemoryError as error:
            return CellResult("failed", "died", f"the host ran out of memory: {_first_line(error)}")
        except exceptions.RayError as error:
            if "KeyboardInterrupt" in str(error):
                return CellResult("interrupted")
            message = f"{type(error).__name__}: {_first_line(error)}{self._where_output_is()}"
            return CellResult("failed", "died", message)

    def _where_output_is(self) -> str:
        """Describe where a dead worker's output is, which the run's log does not include."""
        try:
            # Each node has the folder of its own session under this path.
            folder = self._ray._private.worker._global_node.get_logs_dir_path()
        except AttributeError:  # a private attribute of Ray 2.50 to 2.60
            return " (the workers' output is in Ray's folder of logs on their nodes)"
        return f" (the workers' output is in {folder}/worker-*.err on their nodes)"

    def withdraw(self, handles: Sequence[Any], at_once: bool) -> None:
        for handle in handles:
            self._ray.cancel(handle, force=at_once)

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()
            self._started = False

    def _remote(self, function: Any, backend: str) -> Any:
        """Make ``function`` a Ray task, with separate processes for each Keras backend."""
        return self._ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=self._retries,
            max_calls=1 if self._gpus else 0,
            runtime_env={
                "env_vars": {
                    **handed_on(os.environ),
                    "KERAS_BACKEND": backend,
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
                    "TF_NUM_INTRAOP_THREADS": str(self._cpus),
                    "TF_NUM_INTEROP_THREADS": "1",
                }
            },
        )(function)


HANDED_ON = (
    "NORMBENCH_*",  # the store and other settings
    "TFDS_DATA_DIR",  # prepared data sets
    *("JAX_*", "XLA_FLAGS", "XLA_PYTHON_CLIENT_*", "TF_*"),  # how a run is compiled and computed
    "XDG_CACHE_HOME",  # normbench's own caches
    *("MLFLOW_*", "WANDB_*"),  # loggers
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
"""Patterns of environment variables that affect what a run does, or where it reads and writes.

A Ray task has the environment of its node, not that of the sweep.
"""

_SECRET = ("KEY", "TOKEN", "PASSWORD", "SECRET")
"""Parts of names of variables that are not passed on: Ray shows a task's environment to anyone."""


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of an environment that are passed to workers (:data:`HANDED_ON`)."""
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatchcase(name, pattern) for pattern in HANDED_ON)
        and not any(part in name for part in _SECRET)
    }


def _refuse_unreachable(address: str) -> None:
    """Refuse a ``host:port`` at which nothing listens, because Ray would retry for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), 10).close()
    except (OSError, OverflowError) as error:
        raise NormbenchError(
            f"no Ray cluster answers at {address} ({error}): `ray start --head` starts one"
        ) from error


@contextmanager
def _silent_native_log() -> Iterator[None]:
    """Discard the output of native code to standard error; Python exceptions are not affected."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
