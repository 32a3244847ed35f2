"""Probes on the checkpoints of trained runs: :func:`diagnose`.

Results are appended to a run's ``diagnosis.jsonl``, one line per checkpoint and probe. A line has
the keys ``checkpoint`` (``last`` or ``best``), its ``epoch`` and ``step``, ``probe``, ``options``,
``values`` by name, ``probe_values`` (how reports show them), ``time`` and ``commit``. A report adds
the values to the row of that epoch.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbench.components import options_of
from normbench.config import Config, compose, default_store, group_options, parse
from normbench.engine.observer import described_values
from normbench.errors import NormbenchError, UserError, reason, unknown
from normbench.formats import duration

if TYPE_CHECKING:
    from normbench.engine.reuse import WarmState
    from normbench.engine.setup import TrainingSetup
    from normbench.store.store import Run, Store

CHECKPOINTS = ("last", "best")

NAMED = 8
"""Maximum number of runs named in a suggested command; with more, it contains the word RUN."""

Options = dict[str, dict[str, Any]]
"""The keys of the config group of each probe, by the probe's name."""


@dataclass(frozen=True)
class Target:
    """A run to be diagnosed: its config, the info of its checkpoints, and the probes' options."""

    run: Run
    config: Config
    checkpoints: Mapping[str, Mapping[str, Any]]
    options: Options


@dataclass
class DiagnoseResult:
    """Result of :func:`diagnose`.

    Attributes:
        lines: For each run, the newest measurement of each requested probe, as a line of
            ``diagnosis.jsonl``. Measurements taken during training have the same form.
        measured: Number of new lines.
        failures: One sentence for each run that failed.
    """

    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    measured: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def diagnose(
    store: Store,
    names: Sequence[str],
    probes: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    config_dir: str | None = None,
    again: bool = False,
    command: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> DiagnoseResult:
    """Measure probes on the checkpoints of runs, unless they were measured there before.

    Each option of a probe has the value of ``overrides``, else the one that the run was trained
    with, else the default.

    Args:
        store: Store with the runs.
        names: Names of runs, as :meth:`Store.find` takes them.
        probes: Names of probes; by default all probes that do not refuse the network.
        overrides: Options of probes, such as ``probe.activations.images=100``.
        config_dir: Additional folder with config groups.
        again: Repeat existing measurements.
        command: Command line, recorded in the lock of a run.
        say: Called with a line for each measurement and each failure.

    Raises:
        UserError: There is no such run, probe or option; a run has no checkpoint, or names an
            unknown component; a requested probe refuses the network; the runs used several
            backends, or one that is not installed.
        NormbenchError: A run cannot be read.
    """
    choices = group_options(config_dir)["probe"]
    for name in probes:
        if name not in choices:
            raise unknown("probe", name, choices)
    probe_names = list(dict.fromkeys(probes or choices))
    groups, option_overrides = _options(probe_names, overrides, config_dir)
    targets = [_target(run, groups, option_overrides, config_dir) for run in _runs(store, names)]
    backends = sorted({target.config.backend for target in targets})
    if len(backends) > 1:
        raise UserError(
            f"these runs used {' and '.join(backends)}: diagnose the runs of one backend at a time"
        )

    from normbench.engine.reuse import WarmState

    result, warm = DiagnoseResult(), WarmState()
    for target in targets:
        try:
            result.measured += _diagnose(target, again, bool(probes), warm, list(command), say)
            result.lines[target.run.name] = _answers(target)
        except UserError:
            raise
        except Exception as error:
            warm.drop_all()
            result.failures.append(f"{target.run.name}: {reason(error)}")
            say(result.failures[-1])
    return result


def _runs(store: Store, names: Iterable[str]) -> list[Run]:
    runs = {run.name: run for run in (store.find(name) for name in names)}
    return list(runs.values())


def _options(
    names: Sequence[str], overrides: Sequence[str], config_dir: str | None
) -> tuple[Options, Options]:
    """Return the probes' groups with the overrides applied, and only the overridden options."""
    for override in parse(overrides):
        group, _, inner = override.key_or_group.partition(".")
        name = inner.partition(".")[0]
        if group != "probe" or not inner:
            raise UserError(
                f"{override.input_line!r}: diagnose only takes options of probes, as in "
                "probe.NAME.OPTION=VALUE"
            )
        if name not in names:
            raise unknown("probe", name, names)
    groups = compose([f"probe=[{','.join(names)}]", *overrides], config_dir).probe
    option_overrides: Options = {}
    for override in parse(overrides):
        _, name, option = override.key_or_group.split(".", 2)
        option = option.partition(".")[0]
        option_overrides.setdefault(name, {})[option] = groups[name][option]
    return groups, option_overrides


def trained_without(
    asked: Sequence[tuple[Config, Run]], config_dir: str | Path | None = None
) -> list[str]:
    """Return notes on probes, loggers and labels that complete runs were trained without.

    Probes, loggers and labels are not part of the signature. A config that names some therefore
    finds a complete run that was trained without them, and does not train it again.

    Args:
        asked: Complete runs, each with the config that it was found under.
        config_dir: Additional folder with config groups, for the suggested command.

    Returns:
        Lines on probes, with the command that measures them on the checkpoints, on loggers and on
        labels; none if the runs have all of them.
    """
    probes: dict[tuple[str, ...], list[Run]] = {}
    loggers: dict[tuple[str, ...], list[Run]] = {}
    labels: dict[str, list[Run]] = {}
    for config, run in asked:
        if not (config.probe or config.logger or config.label):
            continue
        try:
            old_config = run.config or {}
            old_probes = {
                *old_config.get("probe", {}),
                *(line.get("probe") for line in run.diagnoses()),
            }
        except NormbenchError:  # whoever reads the run reports its damaged files
            continue
        if missing := tuple(name for name in config.probe if name not in old_probes):
            probes.setdefault(missing, []).append(run)
        if missing := tuple(n for n in config.logger if n not in old_config.get("logger", {})):
            loggers.setdefault(missing, []).append(run)
        if config.label and config.label != old_config.get("label", ""):
            labels.setdefault(old_config.get("label", ""), []).append(run)
    lines = []
    for names, runs in probes.items():
        signatures = [run.name.rpartition("-")[2] for run in runs]
        words = signatures if len(runs) <= NAMED else ["RUN"]
        command = ["normbench", "diagnose", *words, "--probe", ",".join(names)]
        store = asked[0][0].store
        command += [] if store == default_store() else ["--store", store]
        command += [] if config_dir is None else ["--config-dir", str(config_dir)]
        lines.append(
            f"{_were(runs)} trained without the probes {', '.join(names)}; to measure them in "
            f"{'its' if len(runs) == 1 else 'their'} checkpoints: {shlex.join(command)}"
        )
    for names, runs in loggers.items():
        lines.append(
            f"{_were(runs)} trained without logger={','.join(names)}, which writes only during "
            "training; --again trains again"
        )
    for label, runs in labels.items():
        lines.append(f"{_were(runs)} trained with label={label!r}, and keep{_s(runs)} it")
    return lines


def _were(runs: Sequence[Run]) -> str:
    return "this run was" if len(runs) == 1 else f"{len(runs)} complete runs were"


def _s(runs: Sequence[Run]) -> str:
    return "s" if len(runs) == 1 else ""


def _target(run: Run, groups: Options, option_overrides: Options, config_dir: str | None) -> Target:
    """Read a run's config and the info of its checkpoints, without their arrays.

    Raises:
        UserError: The run has no checkpoint, or names an unknown component.
        NormbenchError: A file of the run is damaged.
    """
    run.verify()
    config = Config.from_run(run.config or {}, config_dir, f"run {run.name}")
    infos = {name: run.checkpoint_info(best=name == "best") for name in CHECKPOINTS}
    checkpoints = {name: info for name, info in infos.items() if info is not None}
    if not checkpoints:
        raise UserError(f"run {run.name} has no checkpoint to diagnose")
    options = {
        name: {**group, **options_of(config.probe.get(name, {})), **option_overrides.get(name, {})}
        for name, group in groups.items()
    }
    return Target(run, config, checkpoints, options)


def _diagnose(
    target: Target, again: bool, explicit: bool, warm: WarmState, command: list[str], say: Callable
) -> int:
    """Measure the probes that are due in a run, and return the number of new lines."""
    if not any(_due(target, name, again) for name in target.options):
        return 0
    with target.run.lock(command):
        setup = _prepare(target, explicit, warm, say)
        for line in _own_changes(target, setup):
            say(f"{target.run.name}: {line}, which measures its weights")
        count = 0
        for probe in setup.probes:
            values: dict[tuple[int, int], dict[str, float]] = {}
            for checkpoint in _due(target, probe.name, again):
                position = _position(target.checkpoints[checkpoint])
                if position not in values:  # one measurement if the last epoch is also the best
                    start = time.perf_counter()
                    _restore(target, checkpoint, setup)
                    values[position] = probe.measure(setup.loop, setup.dataset)
                    text = duration(time.perf_counter() - start)
                    say(
                        f"{target.run.name}: {probe.name} at epoch {position[0]} measured in {text}"
                    )
                line = _line(target, checkpoint, probe.name) | {"values": values[position]}
                if descriptions := described_values([probe]):
                    line["probe_values"] = descriptions
                target.run.append_diagnosis(line | _origin())
                count += 1
    return count


def _own_changes(target: Target, setup: TrainingSetup) -> list[str]:
    """Return notes on the user's own code and data that changed since the run was trained."""
    from normbench.store.provenance import own_changes, own_code, own_data

    config = target.config
    current = own_code({**vars(config), "probe": {}})
    current |= own_data(config.dataset, setup.dataset.fingerprint)
    return own_changes((target.run.meta or {}).get("own"), current)


def _due(target: Target, probe: str, again: bool) -> list[str]:
    """Return the names of the checkpoints on which a probe is still to be measured."""
    identities = [] if again else [_identity(line) for line in _known(target)]
    return [
        name
        for name in target.checkpoints
        if _identity(_line(target, name, probe)) not in identities
    ]


def _known(target: Target) -> list[dict[str, Any]]:
    """Return all measurements of a run, from `diagnose` and from training."""
    lines = target.run.diagnoses()
    rows = {(row["epoch"], row["step"]): row for row in target.run.metrics()}
    for checkpoint, info in target.checkpoints.items():
        row = rows.get(_position(info), {})
        for name, options in target.config.probe.items():
            prefix = f"probe/{name}/"
            values = {key.removeprefix(prefix): v for key, v in row.items() if key[:6] == "probe/"
                      and key.startswith(prefix)}  # fmt: skip
            if values:
                line = _line(target, checkpoint, name) | {"options": _plain(options)}
                lines.append(line | {"values": values})
    return lines


def _answers(target: Target) -> list[dict[str, Any]]:
    """Return the newest measurement of each requested probe and checkpoint."""
    requests = {
        _identity(_line(target, checkpoint, probe)): None
        for probe in target.options
        for checkpoint in target.checkpoints
    }
    answers: dict[str, Any] = {**requests, **{_identity(line): line for line in _known(target)}}
    return [answers[key] for key in requests if answers[key] is not None]


def _prepare(
    target: Target, explicit: bool, warm: WarmState, say: Callable[[str], None]
) -> TrainingSetup:
    """Build the run's training setup with the probes that its network does not refuse."""
    from dataclasses import replace

    from normbench.engine import backend
    from normbench.engine.micro_batches import MicroBatches
    from normbench.engine.observer import make_probes
    from normbench.engine.setup import load_dataset, prepare

    backend.refuse_missing(target.config.backend)
    # The checkpoint has all weights, so the run named by ``init`` is not needed.
    config = replace(target.config, probe={}, init="", init_head="trained")
    dataset = warm.dataset(config, load_dataset)
    backend.start(config.backend, config.precision)
    # TensorFlow warns about frequent tracing, which is expected with many networks.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    micro_batches = MicroBatches(config, target.run.meta).count
    if not warm.has_loop_for(config, micro_batches):
        warm.drop_loop()
    setup = prepare(config, dataset, warm, micro_batches)
    probes = []
    for probe in make_probes(target.options):
        try:
            probe.check(setup.model)
            probes.append(probe)
        except UserError as refusal:
            if explicit:
                raise
            say(f"{target.run.name}: {probe.name} left out: {refusal}")
    return replace(setup, probes=probes)


def _restore(target: Target, checkpoint: str, setup: TrainingSetup) -> None:
    """Load a checkpoint into the loop, and set the loop to the epoch that the run had completed."""
    contents = target.run.load_checkpoint(best=checkpoint == "best")
    if contents is None:
        raise NormbenchError(f"the checkpoint {checkpoint} is gone")
    arrays, info = contents
    epoch, step = _position(info)
    setup.loop.begin_epoch(max(epoch - 1, 0))
    setup.loop.rate = float(setup.rates[max(step - 1, 0)])
    setup.loop.load({k: v for k, v in arrays.items() if not k.startswith("partial/")})


def _line(target: Target, checkpoint: str, probe: str) -> dict[str, Any]:
    epoch, step = _position(target.checkpoints[checkpoint])
    return {
        "checkpoint": checkpoint,
        "epoch": epoch,
        "step": step,
        "probe": probe,
        "options": _plain(target.options.get(probe, {})),
    }


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a probe's options without ``every``, which has no meaning for a single checkpoint."""
    return {k: v for k, v in group.items() if k not in ("name", "_target_", "every")}


def _origin() -> dict[str, Any]:
    from normbench.store.provenance import package_git, utc_now

    return {"time": utc_now(), "commit": (package_git() or {}).get("commit")}


def _position(info: Mapping[str, Any]) -> tuple[int, int]:
    return int(info["epoch"]), int(info["step"])


def _identity(line: Mapping[str, Any]) -> str:
    """Return a key that is equal for two lines with the same measurement."""
    keys = ("checkpoint", "epoch", "step", "probe", "options")
    return json.dumps({key: line.get(key) for key in keys}, sort_keys=True)
