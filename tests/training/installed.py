"""What pip knows of this checkout, for entry points to be found."""

import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

GROUPS = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
ROOT = Path(__file__).parents[2]
BUILD = "from setuptools.build_meta import prepare_metadata_for_build_wheel as prepare; prepare('metadata')"


def installed_metadata(folder):
    """A folder for the path, with the project's metadata; None where those that are installed are up to date."""
    if all(entry_points(group=group, name="gfi-lightning") for group in GROUPS):
        return None
    source = folder / "source"  # as building leaves files there
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "metadata").mkdir()
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    return source / "metadata"
