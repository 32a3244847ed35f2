"""``normbench run``: train one network, or resume its training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from normbench.cli.parser import (
    Parser,
    add_config_dir,
    add_store,
    overrides_of,
    quiet_tensorflow,
)
from normbench.errors import UserError

if TYPE_CHECKING:
    from normbench.config import Config
    from normbench.engine.observer import Observer
    from normbench.engine.train import TrainResult

_EPILOG = """\
KEY=VALUE words describe a run; all other keys keep their defaults:
  normbench run norm=gn_ws batch=16 dataset=digits arch=resnet8 epochs=5
  normbench run norm=gn norm.groups=4 optimizer.lr=0.05 dataset.train_size=5000
  normbench run --print-config

The last command prints all keys with their values. Repeating a command resumes an interrupted run
and leaves a finished one as it is. `normbench norms` and `normbench data list` list the choices."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="a config key and its value"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume an existing run; never start a new one"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="move the run's folder aside and train the run again from its first step",
    )
    parser.add_argument(
        "--multirun", action="store_true", help="use Hydra's own sweeper and launcher"
    )
    parser.add_argument("--print-config", action="store_true", help="print the config and exit")
    add_store(parser)
    add_config_dir(parser)


def execute(arguments: Namespace, command: Sequence[str]) -> int:
    if arguments.multirun:
        for option in ("resume", "again", "print_config"):
            if getattr(arguments, option):
                flag = f"--{option.replace('_', '-')}"
                raise UserError(f"{flag} is for one run, --multirun for several")
        quiet_tensorflow()
        from normbench.cli.multirun import multirun

        multirun(overrides_of(arguments), arguments.config_dir)
        return 0
    config = config_of(arguments)
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
        return 0
    from normbench.cli.screen import RunScreen, print_complete

    with RunScreen() as screen:
        screen.waits_for("starting Keras")
        result = train_shown(config, arguments, command, screen)
    if not result.trained:
        print_complete(config, result, arguments.config_dir, again=True)
    return 0


def config_of(arguments: Namespace) -> Config:
    """Return the config that a command line describes.

    Raises:
        UserError: A word or a combination of options is wrong.
    """
    if arguments.again and arguments.resume:
        raise UserError("--resume continues a run and --again restarts it: give one of them")
    from normbench.config import compose

    return compose(overrides_of(arguments), arguments.config_dir)


def train_shown(
    config: Config, arguments: Namespace, command: Sequence[str], observer: Observer
) -> TrainResult:
    """Train the run of a command line.

    Args:
        config: As :func:`config_of` returns it.
        arguments: The options of the command line.
        command: The command line, for the record.
        observer: Shows the training.
    """
    quiet_tensorflow()
    from normbench.engine.train import train
    from normbench.store.store import Store

    return train(
        config,
        Store(config.store),
        observer=observer,
        command=command,
        must_exist=arguments.resume,
        again=arguments.again,
    )


def writes(arguments: Namespace) -> bool:
    return not arguments.print_config
