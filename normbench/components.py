"""Components: the objects that config groups describe, and how they are found and checked.

A file of a config group names a component by its ``_target_``, a dotted path, and lists the options
to build the component with. Three rules apply to every group:

- The files of a group are those in ``conf/`` and in one additional folder (``--config-dir``). A
  name that occurs in both folders is refused (:func:`group_options`).
- A ``_target_`` must name a class or function of its group's kind, which is checked before anything
  is called (:func:`component`), and options that it does not take are refused
  (:func:`configured`).
- A run folder names components but never provides code. A ``_target_`` in its config is imported
  only if a file of the group has the same one (:func:`check_recorded`).
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from normbench.errors import UserError, unknown

__all__ = [
    "DATASET_KEYS",
    "MOVED",
    "NEWER_DATASET_KEYS",
    "check_name",
    "check_names",
    "check_options",
    "check_recorded",
    "component",
    "conf_dir",
    "configured",
    "first_sentence",
    "group_file",
    "group_files",
    "group_options",
    "header",
    "header_of",
    "identify",
    "is_by_content",
    "is_own",
    "look_in_working_folder",
    "make_source",
    "options_of",
    "own_files",
    "parameters_of",
    "present_path",
    "read_composed",
    "read_group",
    "read_groups",
    "read_keys",
    "recorded_components",
    "target",
    "targets_in",
    "with_newer_keys",
]

MOVED = {
    "normbench.data.cifar10": "normbench.data.cifar",
    "normbench.data.cifar100": "normbench.data.cifar",
    "normbench.data.fashion_mnist": "normbench.data.mnist",
    "normbench.data.mnist_binary": "normbench.data.mnist",
    "normbench.norms.batch_apis": "normbench.norms.study.batch_apis",
    "normbench.norms.batch_parts": "normbench.norms.batch",
    "normbench.norms.minmax": "normbench.norms.study.minmax",
    "normbench.norms.scaled_ws": "normbench.norms.weights",
    "normbench.norms.spectral": "normbench.norms.weights",
    "normbench.norms.tfa": "normbench.norms.study.tfa",
    "normbench.norms.weight_normalization": "normbench.norms.weights",
    "normbench.norms.weight_standardization": "normbench.norms.weights",
    "normbench.norms.weight_study": "normbench.norms.study.wrong_ws",
    "normbench.sweep.inline": "normbench.sweep.executors.inline",
    "normbench.sweep.local": "normbench.sweep.executors.local",
    "normbench.sweep.rayexecutor": "normbench.sweep.executors.ray",
    "normbench.sweep.slurm": "normbench.sweep.executors.slurm",
    "normbench.archs.bn_inception.build": "normbench.archs.inception.build_bn_inception",
    "normbench.archs.googlenet.build": "normbench.archs.inception.build_googlenet",
    "normbench.archs.wide_resnet.build": "normbench.archs.resnet_v2.build_wide",
}
"""Current paths of components that have moved, keyed by the old path of the module or of the name
in it. Run folders of earlier versions record the old paths."""

DATASET_KEYS = ("validation", "split_seed", "train_size", "crop_padding", "flip")
"""Keys of a data set's group that the engine reads; all others are options of its class."""

NEWER_DATASET_KEYS: dict[str, Any] = {
    "cutout": 0,
    "erasing": 0.0,
    "jitter": 0.0,
    "randaugment": 0,
    "magnitude": 9,
}
"""Newer keys that the engine reads, with the values at which they have no effect. Files may omit
them, and signatures leave these values out."""

MOST_OPERATIONS = 8
"""Largest ``dataset.randaugment``: the number of operations applied to an image in sequence."""
MOST_MAGNITUDE = 30
"""Largest ``dataset.magnitude``; 0 is the identity for every operation that has a strength."""

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# --- the files of the config groups ---------------------------------------------------------------


def conf_dir() -> Path:
    """Return the ``conf/`` folder of the installed package, or of the checkout."""
    folder = Path(__file__).parent / "conf"
    return folder if folder.is_dir() else Path(__file__).parent.parent / "conf"


def group_options(config_dir: str | Path | None = None) -> dict[str, list[str]]:
    """Return every group (such as ``norm`` or ``norm/weight``) with its names, sorted.

    Args:
        config_dir: A second folder of config groups, laid out like ``conf/``.

    Raises:
        UserError: ``config_dir`` is not a folder, or has a file that ends in ``.yml`` or whose name
            is also in ``conf/``.
    """
    options: dict[str, list[str]] = {}
    for group, name in sorted(group_files(config_dir)):
        if group != ".":
            options.setdefault(group, []).append(name)
    return options


def group_file(group: str, name: str, config_dir: str | Path | None = None) -> Path:
    """Return the path of a group's file.

    Raises:
        UserError: The group has no file of this name; and as :func:`group_options`.
    """
    files = group_files(config_dir)
    if (group, name) not in files:
        raise unknown(group, name, [other for file_group, other in files if file_group == group])
    return files[group, name]


def read_group(group: str, name: str, config_dir: str | Path | None = None) -> dict[str, Any]:
    """Return the keys in a file of a group, its ``defaults`` list included.

    Raises:
        UserError: There is no such file, or it is not a YAML mapping; and as :func:`group_options`.
    """
    return read_keys(group_file(group, name, config_dir))


def read_composed(group: str, name: str, within: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the keys of a file of ``conf/`` merged with its ``defaults``, as Hydra composes them.

    This is a hundred times faster than Hydra, but supports only the constructs that the files of
    ``conf/`` use. Anything else is left to Hydra.

    Args:
        group: The group, such as ``norm``.
        name: The name of the file.
        within: Names of files in nested groups that replace those in the ``defaults`` list:
            ``{"weight": "ws"}`` for ``norm/weight=ws``.

    Returns:
        The keys; None if there is no such file, or if Hydra must read it because of an
        interpolation, a package, a string that Hydra reads as a number, or another kind of entry.
    """
    file = conf_dir() / group / f"{name}.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not text or "${" in text or "@package" in text:
        return None
    keys = read_keys(file)
    entries = keys.pop("defaults", ["_self_"])
    pairs = [entry if isinstance(entry, Mapping) else {"": entry} for entry in entries]
    if not all(len(pair) == 1 and isinstance(next(iter(pair.values())), str) for pair in pairs):
        return None
    defaults = [(str(key), str(value)) for pair in pairs for key, value in pair.items()]
    if not _is_plain(keys) or (keys and ("", "_self_") not in defaults):
        return None
    overrides = {
        key.removeprefix("override "): value
        for key, value in defaults
        if key.startswith("override ")
    }
    within = overrides | dict(within)
    tree: dict[str, Any] = {}
    for key, value in defaults:
        if key.startswith("override "):
            continue
        part: dict[str, Any] | None
        if value == "_self_":
            part = keys
        elif not key:
            part = read_composed(group, value, within)
        else:
            part = read_composed(f"{group}/{key}", within.get(key, value), {})
        if part is None:
            return None
        _merge(tree, {key: part} if key else part)
    return tree if set(within) <= set(tree) else None


def _is_plain(value: Any) -> bool:
    """Return whether Hydra would read every value in a tree as :func:`read_keys` does."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        try:
            float(value)  # such as 1e-5, which YAML reads as a string
        except ValueError:
            return True
        return False
    return value is None or isinstance(value, bool | int | float)


def _merge(tree: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Copy the keys of ``other`` into a tree; a mapping that is in both is merged."""
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def read_groups(config_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """Return the keys of each file of each group, as :func:`read_group` returns them."""
    return [read_keys(file) for (group, _), file in group_files(config_dir).items() if group != "."]


def header(group: str, name: str, config_dir: str | Path | None = None) -> str:
    """Return the comment at the top of a file of a group on one line; "" if it has none."""
    return header_of(group_file(group, name, config_dir))


def header_of(file: Path) -> str:
    """Return the comment at the top of a config file on one line; "" if it has none."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(" ".join(lines).split())


def first_sentence(comment: str) -> str:
    """Return the first sentence of the comment at the top of a config file."""
    comment = re.sub(r"^@package \S+ ", "", comment)
    return re.split(r"(?<=\.)\s+(?=[A-Z])|\s+(?=normbench )", comment)[0]


def targets_in(group: str, config_dir: str | Path | None = None) -> set[str]:
    """Return the ``_target_`` paths that the files of a group name.

    Raises:
        UserError: A file of the group is not a YAML mapping; and as :func:`group_options`.
    """
    paths = (read_keys(file).get("_target_") for file in _files_of(group, config_dir))
    return {path for path in paths if isinstance(path, str)}


def own_files(
    group: str, spec: Mapping[str, Any], config_dir: str | Path | None
) -> dict[tuple[str, str], Path]:
    """Return the files of ``config_dir`` that define a component, and those in their ``defaults``.

    Args:
        group: Such as ``norm`` or ``norm/weight``.
        spec: The keys of the component in the config of a run.
        config_dir: A second folder of config groups.

    Returns:
        The files by group and name; empty if ``conf/`` has the component.

    Raises:
        UserError: As :func:`group_options`, or a file of the group is not a YAML mapping.
    """
    shipped_files = _files_under(conf_dir())
    files = {key: file for key, file in group_files(config_dir).items() if key not in shipped_files}
    path, name = spec.get("_target_"), spec.get("name")
    if not is_own(path) and (group, name) in shipped_files:
        return {}
    trees = {key: read_keys(file) for key, file in files.items() if key[0] == group}
    matches = [key for key, tree in trees.items() if tree.get("_target_") == path]
    queue = [key for key in matches if trees[key].get("name", key[1]) == name]
    if not queue and is_own(path):  # the name was set on the command line
        queue = matches
    result: dict[tuple[str, str], Path] = {}
    while queue:
        key = queue.pop()
        if key in files and key not in result:
            result[key] = files[key]
            queue += _defaults_of(key[0], read_keys(files[key]))
    return result


def _defaults_of(group: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield group and name of each entry in the ``defaults`` of a file of a group."""
    for entry in tree.get("defaults") or []:
        if isinstance(entry, Mapping):
            yield from ((f"{group}/{subgroup}", str(name)) for subgroup, name in entry.items())
        else:
            yield group, str(entry)


def group_files(config_dir: str | Path | None = None) -> dict[tuple[str, str], Path]:
    """Return all config files by group and name; files at the top of a folder have the group ".".

    Raises:
        UserError: As :func:`group_options`.
    """
    shipped_files = _files_under(conf_dir())
    if config_dir is None:
        return shipped_files
    folder = Path(config_dir).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir {str(config_dir)!r} is not a folder")
    user_files = _files_under(folder)
    groups = {group for group, _ in shipped_files if group != "."}
    for group in sorted(groups):
        for file in sorted((folder / group).glob("*.yml")):
            raise UserError(f"{file} is not read: config files end in .yaml, so rename it")
    conflicts = [
        key
        for key in user_files
        if key in shipped_files and not user_files[key].samefile(shipped_files[key])
    ]
    if conflicts:
        group, name = key = min(conflicts)
        title = f"{name}.yaml" if group == "." else f"{group}={name}"
        suffix = f" (and {len(conflicts) - 1} more names)" if len(conflicts) > 1 else ""
        raise UserError(
            f"{title} is in both {user_files[key]} and {shipped_files[key]}{suffix}: give your "
            "file another name"
        )
    return {**shipped_files, **user_files}


def _files_under(root: Path) -> dict[tuple[str, str], Path]:
    return {
        (file.parent.relative_to(root).as_posix(), file.stem): file for file in root.rglob("*.yaml")
    }


def _files_of(group: str, config_dir: str | Path | None) -> list[Path]:
    return [
        file for (file_group, _), file in group_files(config_dir).items() if file_group == group
    ]


def read_keys(file: Path) -> dict[str, Any]:
    """Return the keys in a config file.

    Raises:
        UserError: The file is not a YAML mapping.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, Mapping):
        raise UserError(f"{file} must be a group of keys")
    return dict(tree)


# --- from a path to a component -------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """The kind of object that the files of a group may name.

    Attributes:
        wanted: Description of the kind; a message puts it after "must be".
        accepts: Returns whether an imported object is of this kind.
    """

    wanted: str
    accepts: Callable[[Any], bool]


def _subclass_of(path: str) -> _Kind:
    """Return the kind that accepts subclasses of a class, which is imported at the first check."""

    def accepts(candidate: Any) -> bool:
        if not inspect.isclass(candidate) or inspect.isabstract(candidate):
            return False
        return issubclass(candidate, target(path))

    return _Kind(f"a subclass of {path}", accepts)


def _function_of(description: str, *parameters: str) -> _Kind:
    """Return the kind that accepts functions whose first parameters have these names."""

    def accepts(candidate: Any) -> bool:
        if not callable(candidate):
            return False
        try:
            names = list(inspect.signature(candidate).parameters)
        except (TypeError, ValueError):  # a builtin without a signature
            return False
        return tuple(names[: len(parameters)]) == parameters

    return _Kind(f"{description}({', '.join(parameters)}, …)", accepts)


def _is_optimizer(candidate: Any) -> bool:
    has_slots = hasattr(candidate, "slots") or "slots" in getattr(candidate, "__annotations__", ())
    return inspect.isclass(candidate) and has_slots and callable(getattr(candidate, "update", None))


_KINDS = {
    "dataset": _subclass_of("normbench.data.base.Source"),
    "arch": _function_of("a function that builds a model, build", "norm", "input_shape", "classes"),
    "norm": _subclass_of("keras.Layer"),
    "norm/weight": _subclass_of("normbench.norms.weights.WeightParametrization"),
    "optimizer": _Kind("a class with slots and update(), as in engine/optimizer.py", _is_optimizer),
    "schedule": _function_of("a function of learning rates, schedule", "steps"),
    "probe": _subclass_of("normbench.engine.observer.Probe"),
    "logger": _subclass_of("normbench.engine.observer.Logger"),
    "executor": _subclass_of("normbench.sweep.executors.base.Executor"),
}


def target(path: str) -> Any:
    """Import the object at a dotted path, or at its current path if it has moved (:data:`MOVED`).

    Raises:
        UserError: There is no such module, or it has no such name.
    """
    module_name, _, name = present_path(path).rpartition(".")
    if not module_name:
        raise UserError(f"_target_ {path!r} is not a dotted path such as package.module.Class")
    if is_own(path):
        look_in_working_folder()
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(
                f"_target_ {path!r}: there is no module {error.name!r} in {Path.cwd()} or on "
                "Python's path: start normbench in the folder that holds it, or install it"
            ) from None
        raise
    if not hasattr(module, name):
        raise unknown(f"name in {module_name}", name, [n for n in vars(module) if n[0] != "_"])
    return getattr(module, name)


def present_path(path: str) -> str:
    """Return the current path of a component that may have moved (:data:`MOVED`)."""
    module, _, name = path.rpartition(".")
    return MOVED.get(path) or f"{MOVED.get(module, module)}.{name}"


def look_in_working_folder() -> None:
    """Let Python import modules from the working folder, as it does for ``python -m normbench``."""
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)  # last, so that its modules shadow no others


def is_own(target: Any) -> bool:
    """Return whether a ``_target_`` names code outside normbench."""
    return isinstance(target, str) and not target.startswith("normbench.")


def check_names(tree: Mapping[str, Any]) -> None:
    """Check the names of the components in a config (:func:`check_name`)."""
    for group in ("dataset", "arch", "norm", "optimizer", "schedule"):
        check_name(group, tree[group])
    if isinstance(tree["norm"], Mapping):
        check_name("norm/weight", tree["norm"].get("weight"))
    for group in ("probe", "logger"):
        for spec in (tree[group] or {}).values():
            check_name(group, spec)


def check_name(group: str, spec: Any) -> None:
    """Refuse a user's component that has the name of a shipped one.

    Runs and reports show only the name, which would be ambiguous.

    Args:
        group: Such as ``norm`` or ``norm/weight``.
        spec: The keys of the group in a config.

    Raises:
        UserError: ``name`` is a name in ``conf/``, and ``_target_`` is outside normbench.
    """
    path, name = (spec.get("_target_"), spec.get("name")) if isinstance(spec, Mapping) else ("", "")
    shipped_file = conf_dir() / group / f"{name}.yaml"
    if is_own(path) and shipped_file.is_file():
        raise UserError(
            f"{group}: the file that names {path!r} has the name {name!r}, already taken by "
            f"{shipped_file}: set another 'name' in it"
        )


def component(group: str, path: str, called: str) -> Any:
    """Import the component that a ``_target_`` of a group names, without calling it.

    Args:
        group: Such as ``norm`` or ``norm/weight``.
        path: The dotted path.
        called: Name of the component in messages, such as ``norm=gn``.

    Raises:
        UserError: There is no such object, or it is not of the group's kind.
    """
    kind = _KINDS[group]
    candidate = target(path)
    if not kind.accepts(candidate):
        raise UserError(f"{called}: _target_ {path!r} must be {kind.wanted}")
    return candidate


def configured(
    group: str,
    spec: Mapping[str, Any],
    *,
    called: str | None = None,
    keys: Collection[str] = (),
    structure: Collection[str] = (),
    passed: Collection[str] = (),
) -> tuple[Any, dict[str, Any]]:
    """Return the component that a group's keys describe, and the options to call it with.

    Args:
        group: Such as ``norm`` or ``norm/weight``.
        spec: The keys of the group in a config: ``name``, ``_target_`` and options.
        called: Name of the component in messages; ``GROUP=NAME`` by default.
        keys: Required keys that are not options of the component, because the engine reads them.
        structure: Optional keys that are not options of the component.
        passed: Names of the parameters that the caller passes in addition to the options.

    Raises:
        UserError: There is no such component, it is of another kind, or it does not take one of the
            options.
    """
    called = called or f"{group}={spec.get('name')}"
    path = spec.get("_target_")
    if not isinstance(path, str):
        raise UserError(f"{called} lacks the key '_target_', a dotted path")
    factory = component(group, path, called)
    options = options_of(spec, *keys, *structure)
    check_options(called, factory, {**dict.fromkeys(passed), **options}, keys)
    for key in keys:
        if key not in spec:
            raise UserError(f"{called} lacks the option {key!r}")
    return factory, options


def make_source(spec: Mapping[str, Any]) -> Any:
    """Build the source of a data set, a :class:`normbench.data.base.Source`.

    Args:
        spec: The group ``dataset`` of a config.

    Raises:
        UserError: There is no such class, it is not a source, or it does not take one of the
            options.
    """
    source, options = _configured_dataset(spec)
    return source(**options)


def _configured_dataset(spec: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    return configured("dataset", spec, keys=DATASET_KEYS, structure=NEWER_DATASET_KEYS)


def with_newer_keys(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set's keys with missing newer ones added (:data:`NEWER_DATASET_KEYS`)."""
    return {**spec, **{k: v for k, v in NEWER_DATASET_KEYS.items() if k not in spec}}


def is_by_content(spec: Mapping[str, Any]) -> bool:
    """Return whether a data set is identified by its content (:mod:`normbench.data.content`)."""
    return "content" in spec and not is_own(spec.get("_target_"))


def identify(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set's keys, with its content filled in if the content identifies it.

    Args:
        spec: The group ``dataset`` of a config.

    Raises:
        UserError: The data set does not exist or cannot be read, or its title is the name of a data
            set that ships with normbench.
    """
    if not is_by_content(spec):
        return dict(spec)
    source, options = _configured_dataset(spec)
    keys = source.identify(**options)
    if (conf_dir() / "dataset" / f"{keys['title']}.yaml").is_file():
        if spec.get("title"):
            raise UserError(
                f"dataset.title={keys['title']} is the name of a data set that ships with "
                "normbench: choose another title"
            )
        keys["title"] = f"{spec['name']} {keys['title']}"  # the title came from the file's name
    return {**spec, **keys}


def options_of(group: Mapping[str, Any], *not_options: str) -> dict[str, Any]:
    """Return a group's options: all keys but ``name``, ``_target_`` and ``not_options``."""
    return {
        key: value for key, value in group.items() if key not in ("name", "_target_", *not_options)
    }


def parameters_of(factory: Any) -> dict[str, inspect.Parameter]:
    """Return the options that a class or a function takes, by name.

    The ``name`` and ``dtype`` of a layer are not options, nor is anything that it accepts only
    through ``**kwargs``.
    """
    signature = inspect.signature(factory.__init__ if inspect.isclass(factory) else factory)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in kinds and name not in ("self", "name", "dtype")
    }


def check_options(
    kind: str, factory: Any, options: Mapping[str, Any], other_keys: Collection[str] = ()
) -> None:
    """Refuse options that a component does not take, and missing options that it requires.

    Args:
        kind: Name of the component in messages, such as ``norm=gn``.
        factory: A class or a function.
        options: Values of the options by name.
        other_keys: Other allowed keys, for the message.

    Raises:
        UserError: An unknown or a missing option.
    """
    parameters = parameters_of(factory)
    for name in options:
        if name not in parameters:
            raise unknown(f"option of {kind}", str(name), [*parameters, *other_keys])
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise UserError(f"{kind} lacks the option {name!r}")


# --- components that a run folder names -----------------------------------------------------------

_MOST_DEPTH = 8
_MOST_VALUES = 10_000


def check_recorded(
    tree: Mapping[str, Any], config_dir: str | Path | None, where: str
) -> dict[str, Any]:
    """Check that the components in a run folder's config may be built.

    A run folder may come from an untrusted source, so it must not decide which code runs. It can
    only choose among the components that ``conf/`` and ``config_dir`` name, and set their options
    to plain values.

    Args:
        tree: The recorded config.
        config_dir: A second folder of config groups, given on this process's command line.
        where: Name of the run in messages.

    Returns:
        The config with the current paths of components that have moved (:data:`MOVED`).

    Raises:
        UserError: The config has a ``_target_`` that no file in either folder has, or a value that
            no config of normbench has.
    """
    _check_size(tree, where)
    checked_tree = _moved(tree)
    groups = dict(recorded_components(checked_tree, where))
    # normbench writes no _target_ anywhere else.
    for path, class_path in _targets(checked_tree):
        if path not in groups:
            raise UserError(f"{where} names {class_path!r} at {path}, where no component belongs")
    for path, (group, spec) in groups.items():
        class_path = spec.get("_target_")
        is_known = isinstance(class_path, str) and class_path in targets_in(group, config_dir)
        if class_path is not None and not is_known:
            raise UserError(
                f"{where} names {class_path!r} at {path}, which no file of {group} has in "
                f"{_folders(config_dir)}: it is not imported"
                f"{'' if config_dir else ' (--config-dir adds a folder of your own)'}"
            )
        for key, value in spec.items():
            structure = path == "norm" and key in _STRUCTURE
            if not structure and _holds_mapping(value):
                _check_mapping(group, key, value, config_dir, f"{where} sets {path}.{key}")
    return checked_tree


_STRUCTURE = ("weight", "bfn", "places")
"""Keys of the group ``norm`` that hold further components."""


def recorded_components(
    tree: Mapping[str, Any], where: str
) -> Iterator[tuple[str, tuple[str, Mapping[str, Any]]]]:
    """Yield each component in the config of a run.

    Args:
        tree: The config.
        where: Name of the run in messages.

    Yields:
        The position of the component in the config, such as ``norm.weight``; its group, such as
        ``norm/weight``; and its keys, empty if the config has no such component.

    Raises:
        UserError: A key that must hold a component holds something else.
    """

    def group_at(parent: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
        value = parent.get(key) or {}
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: {path} must be a group of keys, not {value!r}")
        return value

    for group in ("dataset", "arch", "norm", "optimizer", "schedule"):
        yield group, (group, group_at(tree, group, group))
    for group in ("probe", "logger"):
        for name in group_at(tree, group, group):
            path = f"{group}.{name}"
            yield path, (group, group_at(tree[group], name, path))
    norm = group_at(tree, "norm", "norm")
    yield "norm.weight", ("norm/weight", group_at(norm, "weight", "norm.weight"))
    yield "norm.bfn", ("norm", group_at(norm, "bfn", "norm.bfn"))
    places = group_at(norm, "places", "norm.places")
    for place in places:
        path = f"norm.places.{place}"
        yield path, ("norm", group_at(places, place, path))


def _targets(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each ``_target_`` in a config."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield path, value["_target_"]
        for key, item in value.items():
            yield from _targets(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _targets(item, path)


def _moved(value: Any) -> Any:
    """Return a copy of a config with the current paths of components that have moved."""
    if isinstance(value, Mapping):
        return {
            key: present_path(item) if key == "_target_" and isinstance(item, str) else _moved(item)
            for key, item in value.items()
        }
    return [_moved(item) for item in value] if isinstance(value, list) else value


def _check_size(tree: Mapping[str, Any], where: str) -> None:
    """Refuse cyclic or enormous values, which YAML aliases can produce from a small file."""
    values_left = _MOST_VALUES
    stack: list[tuple[Any, int]] = [(tree, 0)]
    while stack:
        value, depth = stack.pop()
        values_left -= 1
        if values_left < 0 or depth > _MOST_DEPTH:
            raise UserError(f"{where} has too many values in config.yaml, or nests them too deeply")
        if isinstance(value, Mapping):
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            stack += [(item, depth + 1) for item in value]


def _holds_mapping(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_mapping, value))
    return isinstance(value, Mapping)


def _check_mapping(
    group: str, key: str, value: Any, config_dir: str | Path | None, sets: str
) -> None:
    """Refuse an option that is a mapping, unless a file of the group has the same value.

    From a mapping that names a module and a class, Keras would build an object of any class.
    """
    text = json.dumps(value, sort_keys=True, default=str)
    for file in _files_of(group, config_dir):
        if json.dumps(read_keys(file).get(key), sort_keys=True, default=str) == text:
            return
    raise UserError(f"{sets} to a group of keys, which no file of {group} does")


def _folders(config_dir: str | Path | None) -> str:
    return "conf/" if config_dir is None else f"conf/ or {config_dir}"
