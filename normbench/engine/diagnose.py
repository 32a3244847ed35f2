"""``normbench diagnose``: what probes measure in the checkpoints that runs left.

What is found stands in the run's ``diagnosis.jsonl``, a line a checkpoint and probe: ``checkpoint``
(``last`` or ``best``), ``epoch`` and ``step`` of it, ``probe``, ``options``, ``values`` by name,
``time`` and ``commit``. A report adds them to the run's row of that epoch.
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

from normbench.components import check_recorded, options_of
from normbench.config import Config, compose, default_store, group_options, parse
from normbench.errors import NormbenchError, UserError, reason, unknown
from normbench.formats import duration

if TYPE_CHECKING:
    from normbench.engine.reuse import WarmState
    from normbench.engine.setup import TrainingSetup
    from normbench.store.store import Run, Store

CHECKPOINTS = ("last", "best")

#: Runs that a command names one by one; of more it names none.
NAMED = 8
_SINCE = {"probe": {}, "label": "", "store": ""}  # keys that the configs of older runs may lack

Options = dict[str, dict[str, Any]]
"""Of each probe: its group of the config."""


@dataclass(frozen=True)
class Target:
    """A run to be diagnosed: its config, and the info of each checkpoint that it has."""

    run: Run
    config: Config
    checkpoints: Mapping[str, Mapping[str, Any]]
    options: Options


@dataclass
class DiagnoseResult:
    """What became of a call of :func:`diagnose`.

    Attributes:
        lines: By run, the lines of its ``diagnosis.jsonl`` that answer what was asked, and those
            that the run itself measured, in their form.
        measured: How many of them are new.
        failures: A sentence each.
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
    """Measure in the checkpoints of runs what was not measured yet.

    A probe's options are those of the command; else those that the run had; else the defaults.

    Args:
        store: Where the runs are.
        names: Of runs, as :meth:`Store.find` takes them.
        probes: Names; all that there are by default, those left out that a network refuses.
        overrides: Options of probes, as ``probe.activations.images=100``.
        config_dir: A further folder with config groups.
        again: Measure also what was measured before.
        command: For the lock of a run, to say who holds it.
        say: Is told of each measurement and of each failure.

    Raises:
        UserError: No such run or probe, or option; a run that has no checkpoint, that names a
            component of no config group, or whose network a probe that was named refuses; runs of
            several backends.
        NormbenchError: The backend is missing, or a run cannot be read.
    """
    offered = group_options(config_dir)["probe"]
    for name in probes:
        if name not in offered:
            raise unknown("probe", name, offered)
    wanted = list(dict.fromkeys(probes or offered))
    groups, given = _options(wanted, overrides, config_dir)
    targets = [_target(run, groups, given, config_dir) for run in _runs(store, names)]
    backends = sorted({each.config.backend for each in targets})
    if len(backends) > 1:
        raise UserError(
            f"these runs used {' and '.join(backends)}: diagnose the runs of one backend at a time"
        )

    from normbench.engine.reuse import WarmState

    outcome, warm = DiagnoseResult(), WarmState()
    for each in targets:
        try:
            outcome.measured += _diagnose(each, again, bool(probes), warm, list(command), say)
            outcome.lines[each.run.name] = _answers(each)
        except UserError:
            raise
        except Exception as error:
            warm.drop_all()
            outcome.failures.append(f"{each.run.name}: {reason(error)}")
            say(outcome.failures[-1])
    return outcome


def _runs(store: Store, names: Iterable[str]) -> list[Run]:
    found = {run.name: run for run in (store.find(name) for name in names)}
    return list(found.values())


def _options(
    names: Sequence[str], overrides: Sequence[str], config_dir: str | None
) -> tuple[Options, Options]:
    """The groups of probes as their files and the overrides say, and what the overrides say."""
    for override in parse(overrides):
        group, _, rest = override.key_or_group.partition(".")
        name = rest.partition(".")[0]
        if group != "probe" or not rest:
            raise UserError(
                f"{override.input_line!r}: diagnose only takes options of probes, as in "
                "probe.NAME.OPTION=VALUE"
            )
        if name not in names:
            raise unknown("probe", name, names)
    groups = compose([f"probe=[{','.join(names)}]", *overrides], config_dir).probe
    given: Options = {}
    for override in parse(overrides):
        _, name, option = override.key_or_group.split(".", 2)
        option = option.partition(".")[0]
        given.setdefault(name, {})[option] = groups[name][option]
    return groups, given


def trained_without(
    asked: Sequence[tuple[Config, Run]], config_dir: str | Path | None = None
) -> list[str]:
    """Say what configs ask of complete runs that can only be had while they train.

    Probes, loggers and labels are no part of a run's signature: a complete run is found under the
    config that has them, and is not trained again.

    Args:
        asked: Complete runs, each with the config that it was found under.
        config_dir: The further folder with config groups that those configs are composed from.

    Returns:
        A line each for probes, with the command that measures them in the checkpoints, for loggers
        and for labels; none where the runs have all of them.
    """
    probes: dict[tuple[str, ...], list[Run]] = {}
    loggers: dict[tuple[str, ...], list[Run]] = {}
    labels: dict[str, list[Run]] = {}
    for config, run in asked:
        if not (config.probe or config.logger or config.label):
            continue
        try:
            recorded = run.config or {}
            known = {*recorded.get("probe", {}), *(line.get("probe") for line in run.diagnoses())}
        except NormbenchError:  # damaged files are told of where a run is read
            continue
        if missing := tuple(name for name in config.probe if name not in known):
            probes.setdefault(missing, []).append(run)
        if missing := tuple(n for n in config.logger if n not in recorded.get("logger", {})):
            loggers.setdefault(missing, []).append(run)
        if config.label and config.label != recorded.get("label", ""):
            labels.setdefault(recorded.get("label", ""), []).append(run)
    lines = []
    for names, runs in probes.items():
        signatures = [run.name.rpartition("-")[2] for run in runs]
        shown = signatures if len(runs) <= NAMED else ["RUN"]
        command = ["normbench", "diagnose", *shown, "--probe", ",".join(names)]
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
            "training; --again trains anew"
        )
    for label, runs in labels.items():
        lines.append(f"{_were(runs)} trained with label={label!r}, and keep{_s(runs)} it")
    return lines


def _were(runs: Sequence[Run]) -> str:
    return "this run was" if len(runs) == 1 else f"{len(runs)} complete runs were"


def _s(runs: Sequence[Run]) -> str:
    return "s" if len(runs) == 1 else ""


def _target(run: Run, groups: Options, given: Options, config_dir: str | None) -> Target:
    """Read what is known of a run without its arrays.

    Raises:
        UserError: It has no checkpoint, or names a component that no config group has.
        NormbenchError: A file of it is damaged.
    """
    run.verify()
    tree = {k: v for k, v in (run.config or {}).items() if k not in ("signature", "schema")}
    recorded = check_recorded(_SINCE | tree, config_dir, f"run {run.name}")
    config = Config.from_dict(recorded)
    infos = {each: run.checkpoint_info(best=each == "best") for each in CHECKPOINTS}
    found = {each: info for each, info in infos.items() if info is not None}
    if not found:
        raise UserError(f"run {run.name} has no checkpoint to diagnose")
    options = {
        name: {**group, **options_of(config.probe.get(name, {})), **given.get(name, {})}
        for name, group in groups.items()
    }
    return Target(run, config, found, options)


def _diagnose(
    target: Target, again: bool, named: bool, warm: WarmState, command: list[str], say: Callable
) -> int:
    """Measure what is due of a run, and return how much that was."""
    if not any(_due(target, name, again) for name in target.options):
        return 0
    with target.run.lock(command):
        prepared = _prepared(target, named, warm, say)
        for line in _own_changes(target, prepared):
            say(f"{target.run.name}: {line}, which measures its weights")
        measured = 0
        for probe in prepared.probes:
            values: dict[tuple[int, int], dict[str, float]] = {}
            for checkpoint in _due(target, probe.name, again):
                place = _place(target.checkpoints[checkpoint])
                if place not in values:  # the last epoch may be the best
                    began = time.perf_counter()
                    _restore(target, checkpoint, prepared)
                    values[place] = probe.measure(prepared.loop, prepared.dataset)
                    took = duration(time.perf_counter() - began)
                    say(f"{target.run.name}: {probe.name} at epoch {place[0]} measured in {took}")
                target.run.append_diagnosis(
                    _line(target, checkpoint, probe.name) | {"values": values[place]} | _origin()
                )
                measured += 1
    return measured


def _own_changes(target: Target, prepared: TrainingSetup) -> list[str]:
    """Say which code and data of one's own a run was trained with other versions of."""
    from normbench.store.provenance import own_changes, own_code, own_data

    config = target.config
    now = own_code({**vars(config), "probe": {}})
    now |= own_data(config.dataset, prepared.dataset.fingerprint)
    return own_changes((target.run.meta or {}).get("own"), now)


def _due(target: Target, probe: str, again: bool) -> list[str]:
    """The checkpoints in which a probe is to be measured."""
    known = [] if again else [_identity(line) for line in _known(target)]
    return [
        each for each in target.checkpoints if _identity(_line(target, each, probe)) not in known
    ]


def _known(target: Target) -> list[dict[str, Any]]:
    """What was measured of a run: lines of its diagnoses, and of what it measured itself."""
    lines = target.run.diagnoses()
    rows = {(row["epoch"], row["step"]): row for row in target.run.metrics()}
    for checkpoint, info in target.checkpoints.items():
        row = rows.get(_place(info), {})
        for name, options in target.config.probe.items():
            prefix = f"probe/{name}/"
            values = {key.removeprefix(prefix): v for key, v in row.items() if key[:6] == "probe/"
                      and key.startswith(prefix)}  # fmt: skip
            if values:
                line = _line(target, checkpoint, name) | {"options": _plain(options)}
                lines.append(line | {"values": values})
    return lines


def _answers(target: Target) -> list[dict[str, Any]]:
    """Of what is known of a run, the newest of each probe and checkpoint that was asked for."""
    asked = {
        _identity(_line(target, each, name)): None
        for name in target.options
        for each in target.checkpoints
    }
    found: dict[str, Any] = {**asked, **{_identity(line): line for line in _known(target)}}
    return [found[key] for key in asked if found[key] is not None]


def _prepared(
    target: Target, named: bool, warm: WarmState, say: Callable[[str], None]
) -> TrainingSetup:
    """Build what the run was trained with, and the probes that its network does not refuse."""
    from dataclasses import replace

    from normbench.engine import backend
    from normbench.engine.micro_batches import MicroBatches
    from normbench.engine.observer import make_probes
    from normbench.engine.setup import load_dataset, prepare

    config = replace(target.config, probe={})
    dataset = warm.dataset(config, load_dataset)
    backend.start(config.backend, config.precision)
    # That many functions are traced is no mistake where many networks are looked at.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    micro_batches = MicroBatches(config, target.run.meta).count
    if not warm.has_loop_for(config, micro_batches):
        warm.drop_loop()
    prepared = prepare(config, dataset, warm, micro_batches)
    probes = []
    for probe in make_probes(target.options):
        try:
            probe.check(prepared.model)
            probes.append(probe)
        except UserError as refusal:
            if named:
                raise
            say(f"{target.run.name}: {probe.name} left out: {refusal}")
    return replace(prepared, probes=probes)


def _restore(target: Target, checkpoint: str, prepared: TrainingSetup) -> None:
    """Put the loop where the run was at a checkpoint, in the epoch that it had just trained."""
    loaded = target.run.load_checkpoint(best=checkpoint == "best")
    if loaded is None:
        raise NormbenchError(f"the checkpoint {checkpoint} is gone")
    arrays, info = loaded
    epoch, step = _place(info)
    prepared.loop.begin_epoch(max(epoch - 1, 0))
    prepared.loop.rate = float(prepared.rates[max(step - 1, 0)])
    prepared.loop.load({k: v for k, v in arrays.items() if not k.startswith("partial/")})


def _line(target: Target, checkpoint: str, probe: str) -> dict[str, Any]:
    epoch, step = _place(target.checkpoints[checkpoint])
    return {
        "checkpoint": checkpoint,
        "epoch": epoch,
        "step": step,
        "probe": probe,
        "options": _plain(target.options.get(probe, {})),
    }


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """A probe's options; how often a run measures them is none of a single checkpoint's."""
    return {k: v for k, v in group.items() if k not in ("name", "_target_", "every")}


def _origin() -> dict[str, Any]:
    from normbench.store.provenance import package_git, utc_now

    return {"time": utc_now(), "commit": (package_git() or {}).get("commit")}


def _place(info: Mapping[str, Any]) -> tuple[int, int]:
    return int(info["epoch"]), int(info["step"])


def _identity(line: Mapping[str, Any]) -> str:
    """What makes two measurements the same one."""
    keys = ("checkpoint", "epoch", "step", "probe", "options")
    return json.dumps({key: line.get(key) for key in keys}, sort_keys=True)
