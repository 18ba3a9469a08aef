"""The curve of quality against steps: its recipes, its rows, and what it measures."""

import steps
import torch
from bench.cases import Batch
from bench.networks import Network

from gfi_lightning.inversion.recipes import DEFAULT
from tests.networks import ToyCNN, random_images


def test_recipes_are_the_default_but_for_steps_and_tolerance():
    base = DEFAULT.inversion_steps, DEFAULT.target_steps
    made = steps.recipes([base, (0, 0)], [0.01])
    assert list(made) == [f"{base[0]} + {base[1]}", "0 + 0", "6 + 12, tolerance 0.01"]
    assert made[f"{base[0]} + {base[1]}"] == DEFAULT
    assert (made["0 + 0"].inversion_steps, made["0 + 0"].target_steps, made["0 + 0"].tolerance) == (0, 0, 0)
    assert made["6 + 12, tolerance 0.01"].tolerance == 0.01


def test_passes_are_counted_and_each_image_has_a_figure():
    images = random_images(3, 16, dtype=torch.float32)
    part = Batch(images, torch.tensor([0, 1, 2]), [torch.zeros(0, 4)] * 3)
    found = steps.measured(Network(ToyCNN(), lambda image: image), [part], steps.with_steps(1, 2))
    assert len(found["insertion − deletion"]) == 3
    assert found["pairs of passes"] == 0.5 + 1 + 4 + 2 * 2  # the look goes one way


def test_the_table_compares_with_the_base():
    found = {
        "3 + 4": {"insertion − deletion": [0.3, 0.5], "pairs of passes": 15.5},
        "1 + 2": {"insertion − deletion": [0.2, 0.4], "pairs of passes": 9.5},
    }
    _, _, base, other = steps.as_text(found, "3 + 4").splitlines()
    assert " 15.5 |" in base
    assert base.rstrip(" |").endswith("–")
    assert "-0.100 (-0.100 … -0.100)" in other
