"""The command ``gfi-lightning``: each of its sub-commands is a function that adds its parser."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gfi_lightning.errors import UsageError
from gfi_lightning.training.replay_cli import add_replay

if TYPE_CHECKING:
    from gfi_lightning.recording.history import History

_FAILED = 2  # the exit code, as that of argparse
_DEPTH = 3  # folders below the one that was given in which runs are looked for
_SHOWN = 5  # names in a message


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: None: those of the command line.

    Returns:
        The exit code: 0, or 2 if something that was given cannot work, which one line on stderr tells.
    """
    parser = _parser()
    given, further = parser.parse_known_args(arguments)
    if hasattr(given, "further"):  # which are for the LightningCLI
        given.further = further
    elif further:
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    try:
        with _plain_warnings():
            given.run(given)
    except (UsageError, OSError) as error:
        print(f"gfi-lightning: error: {error}", file=sys.stderr)
        return _FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gfi-lightning", description="See what a model looks at while it trains.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_add_report, add_replay):
        add(commands)
    return parser


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings, such as of a damaged file, as a line for who runs the command, not for who writes its code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {message}", file=sys.stderr)
        yield


def _add_report(commands: Any) -> None:
    about = "Write the maps of runs as one page, a file that any browser opens without a server."
    parser = commands.add_parser("report", help="write a page from runs", description=about)
    parser.add_argument(
        "log_dirs",
        nargs="+",
        type=Path,
        metavar="LOGDIR",
        help="log directory of a run, such as lightning_logs/version_0, or a folder of them; two runs or more are "
        "shown side by side",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="what to write; default: %(default)s",
    )
    parser.add_argument("--name", help="of the callback, where a training has several")
    parser.add_argument(
        "--run-id", metavar="ID", help="which training or evaluation, where a folder has several; default: the last"
    )
    parser.set_defaults(run=_report)


def _report(given: argparse.Namespace) -> None:
    _check_writable(given.output)
    folders = _unique([folder for log_dir in given.log_dirs for folder in _runs_in(log_dir)])
    # Not before: PyTorch takes seconds to come in, and nobody waits for them to be told of a typing error.
    from gfi_lightning.recording.report import write_report

    if given.run_id is not None:
        folders = _with_run(folders, given.name, given.run_id)
    names = _names(folders)
    histories = {name: _load(folder, given.name, given.run_id) for name, folder in zip(names, folders, strict=True)}
    size = write_report(histories, given.output)
    for (name, history), folder in zip(histories.items(), folders, strict=True):
        print(f"{name}: {_count(len(history), 'step')}, {_count(len(history.labels), 'sample')}")
        if others := [one for one in history.run_ids(folder, given.name) if one != history.run_id][::-1]:
            print(f"  others in that folder, for --run-id: {_listed(others)}")
    print(f"Wrote {given.output}, {size / 1e6:.1f} MB: open it in a browser.")


def _with_run(folders: Sequence[Path], name: str | None, run_id: str) -> list[Path]:
    """Those that hold it; if none does, all, whose first one then says so."""
    from gfi_lightning.recording.history import History

    return [folder for folder in folders if run_id in History.run_ids(folder, name)] or list(folders)


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give -o the name of a file.")
    if not path.parent.is_dir():
        raise UsageError(f"The folder {path.parent} does not exist: make it, or give -o another file.")


def _runs_in(log_dir: Path) -> list[Path]:
    """The log directory itself if it has a history, or those below that have one."""
    if not log_dir.is_dir():
        raise UsageError(f"{log_dir} is {'a file, and no folder' if log_dir.exists() else 'not there'}.")
    if _has_runs(log_dir / "gfi"):
        return [log_dir]
    below = [path for depth in range(1, _DEPTH + 1) for path in log_dir.glob("*/" * depth + "gfi")]
    if found := [path.parent for path in below if _has_runs(path)]:
        return sorted(found, key=_in_order)
    raise UsageError(
        f"{log_dir} holds no maps, nor do the folders in it: give the log directory of a run with GFICallback, which "
        "has a folder named gfi."
    )


def _has_runs(path: Path) -> bool:
    return any(path.glob("run_*.npy")) or any(path.glob("*/run_*.npy"))


def _in_order(path: Path) -> list[Any]:
    """Sorts version_10 behind version_2."""
    parts = re.split(r"([0-9]+)", str(path))  # a text and a number in turn
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _unique(folders: Sequence[Path]) -> list[Path]:
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells the paths apart, without what they all begin or end with; of a single one its last part."""
    # A folder's name may hold bytes that are no text.
    parts = [tuple(str(folder.resolve()).encode("utf-8", "replace").decode().split(os.sep)) for folder in folders]
    if len(parts) == 1:
        return [parts[0][-1]]
    start = _common(parts)
    end = _common([part[start:][::-1] for part in parts])
    return ["/".join(part[start : len(part) - end]) for part in parts]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all begin with, so that something is left of each."""
    shortest = min(map(len, parts)) - 1
    return next((place for place in range(shortest) if len({part[place] for part in parts}) > 1), shortest)


def _load(folder: Path, name: str | None, run_id: str | None) -> "History":
    from gfi_lightning.recording.history import History

    try:
        return History.load(folder, name, run_id)
    except FileNotFoundError as error:
        others = sorted({path.parent.name for path in folder.glob("gfi/*/run_*.npy")})
        if not others:
            raise
        raise UsageError(f"{error} Others that are there, for --name: {_listed(others)}.") from None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
