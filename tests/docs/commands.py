"""Lines of a shell on the pages of the documentation: run, or checked where running them would take long."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

from tensorboard.program import TensorBoard

from gfi_lightning.cli import main

ROOT = Path(__file__).resolve().parents[2]


def run_line(line: str, folder: Path) -> None:
    """Run a line in a folder, or check it.

    Raises:
        AssertionError: it fails, or nobody knows how to test it.
    """
    words = shlex.split(line)
    kind = _KINDS.get(words[0])
    assert kind is not None, f"nobody knows how to test this line: {line!r} (see tests/docs/commands.py)"
    kind(words[1:], folder)


def _gfi_lightning(arguments, folder):
    assert main(arguments) == 0, arguments


def _make(targets, folder):
    for target in targets:
        result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def _pip(arguments, folder):
    assert arguments[0] == "install", arguments
    extras = metadata("gfi-lightning").get_all("Provides-Extra")
    for wanted in arguments[1:]:
        found = re.fullmatch(r"(gfi-lightning|\.)(?:\[(.+)\])?", wanted)
        assert found, f"{wanted!r} is not this package"
        assert set((found[2] or "").split(",")) <= {"", *extras}, wanted


def _tensorboard(arguments, folder):
    TensorBoard().configure(["tensorboard", *arguments])


def _python(arguments, folder):
    """A file that the page has written is run; of our own scripts the flags are looked for."""
    script = arguments[0]
    if (folder / script).exists():
        result = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout + result.stderr
        return
    assert (ROOT / script).is_file(), f"there is no {script}"
    source = (ROOT / script).read_text(encoding="utf-8")
    for flag in arguments[1:]:
        assert not flag.startswith("-") or f'"{flag.split("=")[0]}"' in source, f"{script} has no {flag}"


_KINDS = {
    "gfi-lightning": _gfi_lightning,
    "make": _make,
    "pip": _pip,
    "tensorboard": _tensorboard,
    "python": _python,
}
