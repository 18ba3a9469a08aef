"""The command ``gfi-lightning replay``, for trainings that were run by a LightningCLI."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gfi_lightning.errors import UsageError, brief

_ABOUT = """\
Explain the same samples at every checkpoint of a finished training, as if GFICallback had been there.

A GFICallback in the config is used with its arguments, else one like GFICallback(). Loggers and other callbacks of the
config take no part. The model and the data are found from the folder that the command is called in.
"""
_FURTHER = """\
Further arguments are those of the LightningCLI: --trainer.accelerator=cpu, --trainer.devices=2 to spread the samples
over two processes, or --model.NAME=VALUE for a value that the config lacks because your own LightningCLI links it.
"""
_OWN = ("seed_everything", "trainer", "model", "data")  # what of a config is needed
_IN_SCRIPT = "__main__."
# In the messages of jsonargparse, for each argument that may also be left out.
_TRIED = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: \[.*\]|Errors:|^ *- Expected a <class 'NoneType'>|"
    r"^ *- |Given value.*",
    re.MULTILINE,
)


def add_replay(commands: Any) -> None:
    """Add the parser of the sub-command to those of the command."""
    parser = commands.add_parser(
        "replay",
        help="explain a finished training from its checkpoints",
        description=_ABOUT,
        epilog=_FURTHER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # as the rest is the LightningCLI's
    )
    parser.add_argument(
        "--ckpt-dir", required=True, type=Path, metavar="DIR", help="the run's checkpoints, all *.ckpt in there"
    )
    parser.add_argument(
        "--config",
        required=True,
        type=Path,
        metavar="FILE",
        help="config.yaml, which LightningCLI wrote beside the run",
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="for the maps and pictures; default: of the run, the parent of a DIR that is called checkpoints",
    )
    parser.add_argument(
        "--model",
        metavar="CLASS",
        help="MODULE.CLASS of the model, where the config does not name it, as with LightningCLI(MyModel)",
    )
    parser.add_argument("--data", metavar="CLASS", help="MODULE.CLASS of the data module, likewise")
    parser.add_argument(
        "--weights-only",
        choices=("true", "false"),
        help="false: load checkpoints that hold more than tensors and plain types; only if you trust them, as they can "
        "run any code",
    )
    parser.set_defaults(run=_replay, further=[])


def _replay(given: argparse.Namespace) -> None:
    if os.getcwd() not in sys.path:  # as for python itself, but not for a command
        sys.path.insert(0, os.getcwd())
    with _told():
        cli = _instantiated(given)
        from gfi_lightning.training.replay import log_dir_of, replay

        log_dir = given.log_dir or log_dir_of(given.ckpt_dir)
        weights_only = None if given.weights_only is None else given.weights_only == "true"
        history = replay(
            given.ckpt_dir,
            cli.model,
            cli.datamodule,
            trainer=cli.trainer,
            log_dir=log_dir,
            weights_only=weights_only,
        )
    if not cli.trainer.is_global_zero:
        return
    if history is None:
        raise UsageError("Nothing was explained: the warnings above say why.")
    steps = f"{len(history)} step{'' if len(history) == 1 else 's'}"
    print(f"Explained {steps} of the training; the maps are in {log_dir / 'gfi'}")
    print(f"To look at them: gfi-lightning report {log_dir}, or tensorboard --logdir {log_dir}")


@contextmanager
def _told() -> Iterator[None]:
    """What Lightning says of arguments that cannot work is for the user, who need not see where it says so."""
    try:
        yield
    except Exception as error:
        # The name of what each of the two packages has.
        if not isinstance(error, UsageError) and type(error).__name__ != "MisconfigurationException":
            raise
        from gfi_lightning.training import internals

        if not internals.is_first_rank():  # the first one says it
            sys.exit(2)
        raise UsageError(" ".join(str(error).split())) from error


def _instantiated(given: argparse.Namespace) -> Any:
    """The run's LightningCLI, with its model, datamodule and trainer."""
    try:
        import yaml  # type: ignore[import-untyped]
        from jsonargparse import get_loader
    except ImportError as error:
        raise UsageError("gfi-lightning replay needs jsonargparse: pip install 'gfi-lightning[cli]'.") from error
    config = _needed(_read(given.config, get_loader("yaml")))
    _name_class("model", given.model, config, given.config)
    _name_class("data", given.data, config, given.config)
    package = _package_of(config["model"]["class_path"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")  # there is a command line beside it
        try:
            return import_module(f"{package}.cli").LightningCLI(
                import_module(package).LightningModule,
                import_module(package).LightningDataModule if "data" in config else None,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                parser_kwargs={"exit_on_error": False},
                args=["--config", yaml.safe_dump(config), *given.further],
                run=False,
                auto_configure_optimizers=False,
            )
        except Exception as error:  # of the arguments, or of the user's own classes
            raise UsageError(
                f"{given.config} and the arguments do not make a model, data and a Trainer ({_reason(error)}); other "
                "values can be given, as in --model.NAME=VALUE."
            ) from error


def _package_of(name: str) -> str:
    """Which of Lightning's two packages a model's class, or a function that makes it, is for."""
    from gfi_lightning.training import internals

    model = _imported(name)
    return internals.package_of(model) if isinstance(model, type) else "lightning.pytorch"


def _read(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    try:
        config = load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config={path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # of the parser, or because it is no text
        raise UsageError(f"--config={path} is no YAML file: {brief(error)}") from error
    if not isinstance(config, dict) or not config.keys() & set(_OWN):
        raise UsageError(f"--config={path} is no config of a run: give the config.yaml that LightningCLI wrote for it.")
    return config


def _needed(config: dict[str, Any]) -> dict[str, Any]:
    """What of a run's config matters for a replay."""
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    quiet = {
        "logger": False,
        "callbacks": [one for one in (callbacks if isinstance(callbacks, list) else [callbacks]) if _is_ours(one)],
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = {**(config.get("trainer") or {}), **quiet}
    return {name: config[name] for name in _OWN if config.get(name) is not None} | {"trainer": trainer}


def _is_ours(callback: Any) -> bool:
    from gfi_lightning.training.callback import GFICallback

    try:
        found = _imported(callback["class_path"])
    except (UsageError, TypeError, KeyError):  # someone else's, in a module that is not needed here
        return False
    return isinstance(found, type) and issubclass(found, GFICallback)


def _name_class(key: str, given: str | None, config: dict[str, Any], path: Path) -> None:
    """Have the config name the class of the model or of the data, with what it is called with."""
    section = config.get(key)
    if section is None and given is None and key == "data":  # the model has its own
        return
    arguments = section if isinstance(section, dict) else {"class_path": section} if section else {}
    if given is not None:
        named = arguments if "class_path" in arguments else {"init_args": arguments}
        config[key] = named | {"class_path": given}
    elif "class_path" not in arguments:
        raise UsageError(
            f"{path} does not name the class of the {key}, as the run's LightningCLI knew it: "
            f"give --{key} MODULE.CLASS."
        )
    elif str(arguments["class_path"]).startswith(_IN_SCRIPT):
        name = arguments["class_path"].removeprefix(_IN_SCRIPT)
        raise UsageError(f"{path} names the class of the {key} in the script that was run: give --{key} SCRIPT.{name}.")
    else:
        config[key] = arguments
    _imported(config[key]["class_path"])


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        if not module:
            raise ImportError("no module is named")
        return getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
        raise UsageError(
            f"{name} cannot be imported ({brief(error)}): give it as MODULE.CLASS, and call gfi-lightning in a folder "
            "where Python finds the module."
        ) from error


def _reason(error: Exception) -> str:
    """What made a parser fail, on one line, without all else that it has tried."""
    return " ".join(_TRIED.sub("", str(error)).split()) or type(error).__name__
