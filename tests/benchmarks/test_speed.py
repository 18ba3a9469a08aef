"""The floor's passes are those of an explanation, the release is the recipe of that name, and the tables are right."""

import json

import pytest
import speed
import torch
from bench.cost import counted
from bench.floor import BarePasses
from bench.release import as_released

from gfi_lightning import GuidedFeatureInversion
from tests.networks import ToyCNN, ToyPatches, random_images


def test_the_release_is_the_recipe_of_that_name():
    model, images = ToyCNN().double(), random_images(3, seed=2)
    targets = torch.tensor([1, 2, 3])
    expected = GuidedFeatureInversion(model, "coarse", recipe="release").explain(images, targets)
    maps = as_released(model, images, targets, layer="coarse")
    well_defined = ~expected.degenerate
    assert well_defined.sum() >= 1
    torch.testing.assert_close(maps.float()[well_defined], expected.heatmaps[well_defined], rtol=0, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_takes_the_passes_of_the_release():
    model = ToyCNN()
    with counted(model) as passes:
        as_released(model, random_images(2).float(), torch.tensor([0, 1]), layer="coarse")
    assert passes.forwards == 2 * 242
    assert passes.backwards >= 2 * (11 + 2 * 69)


@pytest.mark.parametrize(
    ("network", "recipe", "layer"),
    [
        (ToyCNN, "default", None),
        (ToyCNN, "default", ("fine", "coarse")),
        (ToyCNN, "release", "coarse"),
        (ToyPatches, "default", ("fine_patches", "coarse_patches")),
    ],
)
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_bare_passes_are_those_of_the_explanation(network, recipe, layer, chunk_size):
    """The same number of images go forward and back."""
    model, images = network(), random_images(5).float()
    gfi = GuidedFeatureInversion(model, layer, recipe=recipe, chunk_size=chunk_size)
    gfi.explain(images, 1)
    with counted(model) as ours:
        gfi.explain(images, 1)
    with counted(model) as bare:
        floor = BarePasses(model, gfi, images).measure()
    assert (bare.forwards, bare.backwards) == (ours.forwards, ours.backwards)
    assert (floor.evidence > 0) == (recipe == "default")
    assert floor.total == floor.steps + floor.evidence + floor.look


def test_a_small_run_to_the_end(tmp_path, capsys):
    path = tmp_path / "speed.json"
    speed.main(["--networks", "resnet18", "--batches", "1", "--patience", "0", "--json", str(path)])
    (row,) = json.loads(path.read_text())["floor"]
    assert len(row["all passes"]) == 3
    assert all(over < alone for over, alone in zip(row["all passes"], row["steps alone"], strict=True))
    assert "| resnet18 | 64 | default |     1 |" in capsys.readouterr().out


def test_a_ratio_is_the_median_and_the_middle_half():
    assert str(speed.Ratio.of([1.0, 5.0, 2.0, 3.0, 4.0])) == "3.00 (2.00 … 4.00)"


def test_the_table_of_others():
    methods = {
        speed.OURS: {
            "ratios": [1.0, 1.2, 0.9],
            "forwards": 16.0,
            "backwards": 15.0,
            "insertion − deletion": [0.5, 0.3],
        },
        "other": {
            "ratios": [20.0, 30.0, 40.0],
            "forwards": 242.0,
            "backwards": 149,
            "insertion − deletion": [0.4, 0.2],
        },
    }
    first, _, ours, other = speed.others_table({"methods": methods}).splitlines()
    assert "time, ours = 1" in first
    assert "1.00" in ours
    assert "16 + 15" in ours
    assert "0.400 (0.300 … 0.500)" in ours
    assert "30.00" in other
    assert "+0.100 (+0.100 … +0.100)" in other
