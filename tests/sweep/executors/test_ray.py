"""The Ray executor on a cluster of two nodes on this machine, with the fake engine."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from normbench.errors import NormbenchError, UserError
from normbench.store.store import Store
from normbench.sweep.executors.base import Stop
from tests.sweep.conftest import RecordingObserver

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'normbench[ray]'")

from normbench.sweep.executors.ray import RayExecutor  # noqa: E402

INSTALL = Path(__file__).parents[1] / "fakeraysite"


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    # A sitecustomize module installs the fake engine in Ray's worker processes.
    paths = [str(INSTALL), str(Path(__file__).parents[3])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    two_nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    two_nodes.add_node(num_cpus=1)
    ray.init(address=two_nodes.address, log_to_driver=False, logging_level="error",
             runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}})  # fmt: skip
    yield two_nodes
    ray.shutdown()
    two_nodes.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture
def on_ray(cluster, faults, monkeypatch):
    def make(**options):
        executor = RayExecutor(**options)
        remote = executor._remote

        def with_faults(function, backend):
            task = remote(function, backend)
            env = {"FAKE_FAULTS": str(faults.folder), "FAKE_ENGINE": "1", "KERAS_BACKEND": backend}
            return task.options(runtime_env={"env_vars": env})

        monkeypatch.setattr(executor, "_remote", with_faults)
        return executor

    return make


def test_trials_and_final_runs_are_tasks(cluster, faults, tmp_store, monkeypatch):
    from normbench.store.tuning import tuning_of
    from normbench.sweep.sweep import sweep
    from normbench.sweep.tune import TuneOptions

    # Check that trials are recorded when final runs start, not at the end of the sweep.
    monkeypatch.setattr("normbench.sweep.tuned_phases.name_trials", lambda *arguments: None)
    remote = RayExecutor._remote

    def with_fake_engine(self, function, backend):
        env = {"FAKE_FAULTS": str(faults.folder), "FAKE_ENGINE": "1", "KERAS_BACKEND": backend}
        return remote(self, function, backend).options(runtime_env={"env_vars": env})

    monkeypatch.setattr(RayExecutor, "_remote", with_fake_engine)
    # The fake network has no layers to check.
    monkeypatch.setattr(RayExecutor, "check", lambda self, configs: [""] * len(configs))
    overrides = ["dataset=digits", "dataset.train_size=160", "arch=resnet8", "arch.width=4",
                 "batch=16", "epochs=1", "norm=bn", "seed=0,1", f"store={tmp_store}",
                 "executor=ray"]  # fmt: skip
    tune = TuneOptions(["optimizer.lr=0.1,0.2"])
    result = sweep(overrides, ["normbench", "sweep"], tune=tune)
    assert result.exit_code == 0
    store = Store(tmp_store)
    assert Counter(run.status for run in store.runs()) == {"finished": 4}
    (cell,) = tuning_of(store).cells
    for name in cell.final:
        assert store.run(name).meta["tuned"]["trials"] == [trial.run for trial in cell.trials]


def test_runs_are_spread_over_the_nodes(grid, on_ray, run_on, tmp_store):
    observer = run_on(on_ray(), grid("seed=range(0,4)", "epochs=10"))
    assert Counter(result.result for result in observer.results.values()) == {"trained": 4}
    assert {run.status for run in Store(tmp_store).runs()} == {"finished"}
    assert len({run.meta["sessions"][0]["pid"] for run in Store(tmp_store).runs()}) >= 2


def test_failed_runs_and_dead_workers_are_distinguished(grid, on_ray, run_on, faults, tmp_store):
    configs = grid("seed=range(0,3)")
    faults(configs[0].run_name, "raise")
    faults(configs[1].run_name, "kill")
    faults(configs[2].run_name, "kill", 9)
    observer = run_on(on_ray(retries=1), configs)
    results = [observer.results[config.run_name] for config in configs]
    assert [result.result for result in results] == ["failed", "trained", "failed"]
    assert results[0].error == "RuntimeError: something broke in two lines"
    assert results[2].cause == "died"
    assert "(the workers' output is in /" in results[2].error
    folder = Path(results[2].error.partition("output is in ")[2].partition("/worker-")[0])
    assert list(folder.glob("worker-*.err"))
    store = Store(tmp_store)
    assert [run["from_epoch"] for run in store.run(configs[1]).meta["sessions"]] == [0, 1]
    assert store.run(configs[2]).status == "failed"


def test_workers_get_the_relevant_environment_variables(cluster, monkeypatch):
    monkeypatch.setenv("NORMBENCH_ANYTHING", "1")
    monkeypatch.setenv("TFDS_DATA_DIR", "/data/tfds")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache/jax")
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "64")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    executor = RayExecutor(cpus_per_run=1)
    environment = ray.get(executor._remote(lambda: dict(os.environ), "jax").remote())
    assert environment["NORMBENCH_ANYTHING"] == "1"
    assert environment["TFDS_DATA_DIR"] == "/data/tfds"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/cache/jax"
    assert environment["KERAS_BACKEND"] == "jax"
    assert environment["TF_NUM_INTRAOP_THREADS"] == "1"  # executor.cpus_per_run decides
    assert "WANDB_API_KEY" not in environment


@pytest.mark.slow
def test_runs_of_a_lost_node_resume_elsewhere(cluster, grid, on_ray, run_on, tmp_store):
    node = cluster.add_node(num_cpus=1)
    configs = grid("seed=range(0,3)", "epochs=150")

    class Losing(RecordingObserver):
        lost = False

        def idle(self):
            advanced = [
                run
                for run in Store(tmp_store).runs()
                if run.status == "running" and (run.last_metrics() or {}).get("epoch", 0) > 2
            ]
            if len(advanced) == 3 and not self.lost:
                self.lost = True
                cluster.remove_node(node, allow_graceful=False)

    observer = run_on(on_ray(retries=2), configs, Losing())
    assert Counter(result.result for result in observer.results.values()) == {"trained": 3}
    sessions = [len(run.meta["sessions"]) for run in Store(tmp_store).runs()]
    assert sorted(sessions) == [1, 1, 2]


def test_stopped_runs_have_checkpoints(grid, on_ray, run_on, tmp_store):
    stop, training = Stop(), set()

    class Stopping(RecordingObserver):
        """Requests a stop once both nodes are training and each has a checkpoint."""

        def progress(self, cell, facts):
            super().progress(cell, facts)
            if facts["epoch"] > 1:
                training.add(cell.name)
            if len(training) == 2:
                stop.requests = 1

    observer = run_on(on_ray(), grid("seed=range(0,4)", "epochs=300"), Stopping(), stop)
    assert {result.result for result in observer.results.values()} == {"interrupted"}
    runs = Store(tmp_store).runs()
    assert {run.meta["status"] for run in runs} == {"interrupted"}
    assert all(run.load_checkpoint() is not None for run in runs)


@pytest.fixture
def listening_address():
    """Yield the address of a port that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def failing_to_connect(address, error):
    """Return an executor whose Ray raises an error when connecting."""

    def init(**options):
        assert options["address"] == address
        os.write(2, b"rpc_client.h: a line of native code\n")
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}") from error

    executor = RayExecutor(address=address)
    executor._ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    return executor


def test_cluster_that_requires_a_token_says_how_to_set_it(listening_address, capfd):
    # Ray 2.60 raises this if a cluster was started with a token and RAY_AUTH_MODE is not set.
    error = RuntimeError("Failed to connect to GCS. RPC error: InvalidAuthToken: Authentication "
                         "token is missing or incorrect")  # fmt: skip
    with pytest.raises(NormbenchError, match="requires an authentication token: set RAY_AUTH"):
        failing_to_connect(listening_address, error).allocate(1)
    with pytest.raises(
        NormbenchError, match=f"cannot use .* at {listening_address}: Failed to connect"
    ):
        failing_to_connect(listening_address, RuntimeError("version mismatch")).allocate(1)
    assert capfd.readouterr().err == ""


def test_address_that_does_not_answer_is_refused_at_once(listening_address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(NormbenchError, match=f"no Ray cluster answers at {closed}"):
        failing_to_connect(closed, None).allocate(1)


def test_options_are_checked():
    with pytest.raises(UserError, match="gpus_per_run must be a share"):
        RayExecutor(gpus_per_run=1.5)
    with pytest.raises(UserError, match="cpus_per_run"):
        RayExecutor(cpus_per_run=0)
