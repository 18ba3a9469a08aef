"""The wheel: what is in it, what it needs, and what importing it brings along."""

import ast
import email
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gfi_lightning

PACKAGE = Path(gfi_lightning.__file__).parent
CHECKOUT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "docs", "examples", "tests")
SPECIFIER = re.compile(r"(?P<name>[\w.-]+)(\[.*?\])?[^;]*(; extra == [\"'](?P<extra>.*)[\"'])?")

LIBRARIES = {"PIL": "pillow", "yaml": "pyyaml"}  # whose modules have other names


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because building leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, folder / name, **({"ignore": unwanted} if copy is shutil.copytree else {}))
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = [one for one in wheel.namelist() if one.endswith(".dist-info/METADATA")]
    return email.message_from_string(wheel.read(name).decode())


@pytest.fixture(scope="module")
def needed(metadata):
    """The libraries by the extra that needs them, "" for those that are always needed."""
    needed = {"": set()}
    for line in metadata.get_all("Requires-Dist"):
        match = SPECIFIER.fullmatch(line)
        needed.setdefault(match["extra"] or "", set()).add(normalized(match["name"]))
    return needed


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_holds_the_package_and_nothing_else(wheel):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.is_file()}
    assert files == {name for name in there if "__pycache__" not in name}
    assert {f"{PACKAGE.name}/{name}" for name in ("py.typed", "recording/report/assets/page.html")} <= files


def test_its_metadata(wheel, metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# gfi-lightning")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    (scripts,) = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "gfi-lightning = gfi_lightning.cli:main" in scripts


def imports(path):
    """Top-level modules of others that a file imports, and whether it does so as soon as it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.If)  # `if TYPE_CHECKING:` for example
    later = {id(node) for outer in ast.walk(tree) if isinstance(outer, inner) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for root in {name.split(".")[0] for name in names}:
            if root not in sys.stdlib_module_names and root != PACKAGE.name:
                yield root, id(node) not in later


def library_of(module):
    return normalized(LIBRARIES.get(module, module))


def test_whatever_it_imports_is_declared(needed):
    anywhere = set().union(*needed.values())
    for path in PACKAGE.rglob("*.py"):
        for module, at_once in imports(path):
            allowed = needed[""] if at_once else anywhere
            assert library_of(module) in allowed, f"{path.relative_to(PACKAGE)} imports {module}"


def test_whatever_it_needs_is_imported(needed):
    imported = {module for path in PACKAGE.rglob("*.py") for module, _ in imports(path)}
    assert needed[""] <= set(map(library_of, imported))


def test_importing_the_callback_brings_nothing_that_only_drawing_needs():
    program = (
        "import sys, lightning.pytorch; before = set(sys.modules); from gfi_lightning import GFICallback; "
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    brought = set(result.stdout.split())
    assert "gfi_lightning.training.callback" in brought
    late = (
        "matplotlib",
        "torchvision",
        "scipy",
        "pandas",
        "tensorboard",
        "google_crc32c",
        "gfi_lightning.recording.figures",
    )
    assert not {name for name in brought if name.startswith(late)}
