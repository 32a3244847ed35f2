"""``normbench run``: train one network, or resume its training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from normbench.cli.parser import (
    Parser,
    add_config_dir,
    add_store,
    overrides_of,
    quiet_tensorflow,
)
from normbench.errors import UserError

_EPILOG = """\
A run is described by KEY=VALUE words; keys that are not named keep their defaults:
  normbench run norm=gn_ws batch=16 dataset=digits arch=resnet8 epochs=5
  normbench run norm=gn norm.groups=4 optimizer.lr=0.05 dataset.train_size=5000
  normbench run --print-config

The last prints all keys with their values. The same command again resumes an interrupted run and
leaves a finished one as it is. `normbench norms` and `normbench data list` list what there is to
choose from."""


def add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="a key of the config and its value"
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
    overrides = overrides_of(arguments)
    if arguments.multirun:
        for option in ("resume", "again", "print_config"):
            if getattr(arguments, option):
                flag = f"--{option.replace('_', '-')}"
                raise UserError(f"{flag} is for one run, --multirun for several")
        quiet_tensorflow()
        from normbench.cli.multirun import multirun

        multirun(overrides, arguments.config_dir)
        return 0
    if arguments.again and arguments.resume:
        raise UserError("--resume continues a run and --again starts it anew: give one of them")
    from normbench.config import compose

    config = compose(overrides, arguments.config_dir)
    if arguments.print_config:
        import yaml

        print(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True), end="")
        return 0
    quiet_tensorflow()
    from normbench.cli.screen import RunScreen, print_complete
    from normbench.engine.train import train
    from normbench.store.store import Store

    with RunScreen() as screen:
        screen.waits_for("starting Keras")
        result = train(
            config,
            Store(config.store),
            observer=screen,
            command=command,
            must_exist=arguments.resume,
            again=arguments.again,
        )
    if not result.trained:
        print_complete(config, result, arguments.config_dir, again=True)
    return 0


def writes(arguments: Namespace) -> bool:
    return not arguments.print_config
