"""The house: who may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gfi_lightning

PACKAGE = Path(gfi_lightning.__file__).parent
INVERSION = sorted((PACKAGE / "inversion").glob("*.py"))
KNOWN_TO_INVERSION = {
    "torch",
    "gfi_lightning.inversion",
    *(f"gfi_lightning.{name}" for name in ("errors", "guard", "logs")),
}
# An explanation shows itself, which another room does for it when it is asked to.
ON_REQUEST = {("results.py", "gfi_lightning.recording.explained"), ("results.py", "matplotlib.figure")}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", INVERSION, ids=lambda path: path.name)
def test_the_method_knows_torch_alone(path):
    for name in imported_modules(path):
        if (path.name, name) in ON_REQUEST:
            continue
        known = name.split(".")[0] in sys.stdlib_module_names or any(
            name == root or name.startswith(root + ".") for root in KNOWN_TO_INVERSION
        )
        assert known, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_training_room_knows_lightning(path):
    if path.parent.name != "training" and path != PACKAGE / "testing.py":  # which is for tests of trainings
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"lightning", "pytorch_lightning"}


def test_nobody_is_asked_to_draw_before_a_picture_is_wanted():
    program = (
        "import sys, torch; from gfi_lightning import GuidedFeatureInversion; "
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()); "
        "explanation = GuidedFeatureInversion(model).explain(torch.rand(1, 3, 8, 8)); "
        "print(explanation, 'matplotlib' in sys.modules, 'gfi_lightning.recording' in sys.modules); "
        "print(explanation._repr_png_()[:4], 'matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    said, drawn = result.stdout.splitlines()
    assert said.startswith("<Explanation of 1 image of 8 × 8: ")
    assert said.endswith("> False False")
    assert drawn == r"b'\x89PNG' False"


def test_the_method_runs_without_lightning():
    program = (
        "import sys; sys.modules['lightning'] = sys.modules['pytorch_lightning'] = None; import torch; "
        "from gfi_lightning import GuidedFeatureInversion, History; "
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()); "
        "print(GuidedFeatureInversion(model).explain(torch.rand(1, 3, 8, 8)).heatmaps.shape)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, 8, 8])" in result.stdout
    assert "Base layer: 0, feature maps of 4 × 6 × 6." in result.stderr  # announced where no logging is set up
