"""Compare a training step on a GPU with the same step on a CPU, for every norm.

    JAX_PLATFORMS=cpu python benchmarks/gpu/right.py --write reference.npz   # on any machine
    python benchmarks/gpu/right.py --against reference.npz --out right.json  # where the GPU is

A case is one norm, with its weight parametrization, in ResNet-8 at batch 16, in one precision. It
takes one SGD step without momentum at a rate of 1 from the same weights on the same random images,
so the change of the weights is minus the gradient. The loss, the gradient and the layers' state
(moving statistics, vectors of spectral norms) are compared by ‖x − reference‖ / ‖reference‖; for
all precisions the reference is the CPU's in float32. A case passes if

- float32: no difference is above 1e-3. Convolutions and matrix products are computed in true
  float32 (``jax_default_matmul_precision=highest``), not in TF32;
- tf32 (JAX's default for float32 on a GPU) and mixed_bfloat16: no difference is above the larger
  of 2 % and twice that of the same case in bfloat16 on the CPU.

Processes that compile at once on one GPU slow each other down, because XLA times kernels to choose
between them: on an NVIDIA H200 a case took 8 to 19 s with ten processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

BATCH, IMAGES = 16, 64
FLOAT32_LIMIT, HALF_LIMIT = 1e-3, 0.02
MORE_WEIGHTS = ("ws", "scaled_ws", "wn", "cwn", "sn")
"""Further weight parametrizations with which bn, gn and none are checked."""


class Case(NamedTuple):
    norm: str
    weight: str  # "" for the one in the norm's file
    precision: str  # float32, tf32 or mixed_bfloat16

    def __str__(self) -> str:
        return f"{self.norm}{'+' if self.weight else ''}{self.weight} {self.precision}"

    @property
    def reference(self) -> Case:
        return self._replace(precision="float32")


def cases(precisions: list[str], norms: list[str]) -> list[Case]:
    pairs = [(norm, "") for norm in norms]
    weight_pairs = [(n, w) for n in ("bn", "gn", "none") for w in MORE_WEIGHTS if n in norms]
    pairs += [(norm, weight) for norm, weight in weight_pairs if f"{norm}_{weight}" not in norms]
    return [Case(*pair, precision) for precision in precisions for pair in pairs]


def all_norms() -> list[str]:
    """Return the norms of conf/norm, except those that need TensorFlow."""
    names = sorted(path.stem for path in (HERE.parents[1] / "conf" / "norm").glob("*.yaml"))
    return [name for name in names if not name.endswith("_tfa")]


def loop_of(case: Case) -> Any:
    """Build the network of a case, and return its training loop."""
    from types import SimpleNamespace

    import jax
    import keras
    from common import compiled_loop, random_split

    from normbench.config import compose
    from normbench.engine.optimizer import SGD

    keras.backend.clear_session()
    jax.clear_caches()
    exact = case.precision == "float32"
    jax.config.update("jax_default_matmul_precision", "highest" if exact else None)
    precision = case.precision.replace("tf32", "float32")
    weight = [f"norm/weight={case.weight}"] if case.weight else []
    config = compose(
        [f"norm={case.norm}", *weight, "arch=resnet8", f"batch={BATCH}", "backend=jax",
         f"precision={precision}"]
    )  # fmt: skip
    split = random_split(IMAGES)
    return compiled_loop(
        config,
        SimpleNamespace(train=split, validation=split, test=split),
        smoothing=0.1,
        optimizer=SGD(momentum=0.0, nesterov=False, weight_decay=0.0, agc=0.0),
    )


def prepare(flags: str) -> None:
    """Set up a new process before it imports JAX."""
    os.environ.update(
        KERAS_BACKEND="jax",
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
        TF_CPP_MIN_LOG_LEVEL="3",
        JAX_ENABLE_COMPILATION_CACHE="false",  # each process compiles and chooses kernels itself
        XLA_FLAGS=" ".join(filter(None, [os.environ.get("XLA_FLAGS", ""), flags])),
    )


def one_step(case: Case) -> tuple[Case, dict[str, Any]]:
    """Take one step; return its loss, gradient and layer state, or the error."""
    start = time.perf_counter()
    try:
        loop = loop_of(case)
        weights, old_state = loop.weights(), _others(loop)
        loop.begin_epoch(0)
        steps = loop.train(0, np.ones(1, np.float32))
        gradient = weights - loop.weights()
        state = _others(loop)
    except Exception as error:
        return case, {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
    return case, {
        "loss": np.asarray(steps.loss, np.float32),
        "gradient": gradient.astype(np.float32),
        "kept": state
        if state.size and not np.array_equal(state, old_state)
        else np.zeros(0, np.float32),
        "seconds": time.perf_counter() - start,
    }


def _others(loop: Any) -> np.ndarray:
    """Return a model's floating-point values other than its weights, as one vector."""
    values = [np.asarray(v) for v in loop._state["other"]]
    floats = [v.astype(np.float32).ravel() for v in values if v.dtype.kind not in "iu"]
    return np.concatenate([np.zeros(0, np.float32), *floats])


def distance(value: np.ndarray, reference: np.ndarray) -> float:
    if value.shape != reference.shape:
        return float("inf")
    if not reference.size:
        return 0.0
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(value - reference) / max(np.linalg.norm(reference), 1e-30))


def distances(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    return {key: distance(result[key], reference[key]) for key in ("loss", "gradient", "kept")}


def run(todo: list[Case], workers: int, flags: str, until: float) -> Iterator[Any]:
    """Yield the results of parallel processes until the time is up."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, prepare, (flags,)) as pool:
        results = pool.imap_unordered(one_step, todo)
        for _ in todo:
            try:
                yield results.next(timeout=max(0.1, until - time.monotonic()))
            except multiprocessing.TimeoutError:
                return


def write_reference(file: Path, norms: list[str], workers: int, until: float) -> None:
    """Write the CPU's float32 results, and the distance of its bfloat16 results from them."""
    arrays: dict[str, Any] = {}
    exact: dict[Case, dict[str, Any]] = {}
    half: dict[Case, dict[str, Any]] = {}
    todo = cases(["float32", "mixed_bfloat16"], norms)
    for case, result in run(todo, workers, "", until):
        if "error" in result:  # for example, a norm for a place that ResNet-8 does not have
            print(f"left out: {case}: {result['error']}", flush=True)
            continue
        (exact if case.precision == "float32" else half)[case.reference] = result
        print(f"{case}: {result['seconds']:.1f} s", flush=True)
    for case, result in exact.items():
        if case not in half:
            continue
        for key in ("loss", "gradient", "kept"):
            arrays[f"{case}/{key}"] = result[key]
            arrays[f"{case}/{key}/bfloat16"] = np.float64(distances(half[case], result)[key])
    np.savez_compressed(file, **arrays)


def compare(args: argparse.Namespace, until: float) -> dict[str, Any]:
    """Take the step of each case on this machine, and compare it with the reference.

    Returns:
        ``cases``: the result of each case by name; ``failed``: names of those that failed;
        ``missing``: names of those for which there was no time.
    """
    precisions = args.precisions
    with np.load(args.against) as file:
        reference = dict(file)
    names = {name.split("/")[0] for name in reference}
    todo = [case for case in cases(precisions, args.norms) if str(case.reference) in names]
    results: dict[str, Any] = {"cases": {}, "missing": [], "failed": []}
    for case, result in run(todo, args.workers, args.flags, until):
        if "error" in result:
            results["cases"][str(case)] = result
            results["failed"].append(str(case))
            print(f"FAILED {case}: {result['error']}", flush=True)
            continue
        base = {k: reference[f"{case.reference}/{k}"] for k in ("loss", "gradient", "kept")}
        diffs = distances(result, base)
        limits = {
            key: FLOAT32_LIMIT
            if case.precision == "float32"
            else max(HALF_LIMIT, 2 * float(reference[f"{case.reference}/{key}/bfloat16"]))
            for key in diffs
        }
        is_close = all(diffs[key] <= limits[key] for key in diffs)
        results["cases"][str(case)] = {
            "distances": diffs, "limits": limits, "passed": is_close, "seconds": result["seconds"],
        }  # fmt: skip
        if not is_close:
            results["failed"].append(str(case))
            text = ", ".join(f"{k} {diffs[k]:.1e} (limit {limits[k]:.1e})" for k in diffs)
            print(f"FAR {case}: {text}", flush=True)
    results["missing"] = [str(case) for case in todo if str(case) not in results["cases"]]
    for precision in precisions:
        passes = [
            c
            for n, c in results["cases"].items()
            if n.endswith(f" {precision}") and c.get("passed")
        ]
        if passes:
            worst = {
                k: max(c["distances"][k] for c in passes) for k in ("loss", "gradient", "kept")
            }
            middle = {k: float(np.median([c["distances"][k] for c in passes])) for k in worst}
            print(
                f"{precision}: {len(passes)} passed; median and largest distance: "
                + ", ".join(f"{k} {middle[k]:.1e} {worst[k]:.1e}" for k in worst),
                flush=True,
            )
    return results


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--write", type=Path, help="the reference to write, on a CPU")
    options.add_argument("--against", type=Path, help="the reference to compare with")
    options.add_argument("--out", type=Path, help="a file of JSON for the results")
    options.add_argument("--norms", nargs="+", default=all_norms())
    options.add_argument("--precisions", nargs="+", default=["float32", "tf32", "mixed_bfloat16"])
    options.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--seconds", type=float, default=3600, help="for everything")
    options.add_argument("--flags", default="", help="of XLA, for the cases")
    args = options.parse_args()
    until = time.monotonic() + args.seconds
    if args.write:
        write_reference(args.write, args.norms, args.workers, until)
        return
    results = compare(args, until)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    sys.exit(1 if results["failed"] else 0)


if __name__ == "__main__":
    main()
