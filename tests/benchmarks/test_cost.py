"""Passes are counted by image, whoever makes them."""

from dataclasses import replace

import pytest
import torch
from bench import peers
from bench.cost import counted, seconds
from bench.methods import explain_ours, explain_ours_without_target
from bench.perturbation import MeaningfulPerturbation

from gfi_lightning.inversion.recipes import RECIPES
from tests.networks import ToyCNN, ToyPatches, random_images

IMAGES, TARGETS = random_images(3, 16, dtype=torch.float32), torch.tensor([0, 1, 2])


def passes_of(explain, model=None, **options):
    model = model or ToyCNN()
    with counted(model) as passes:
        explain(model, IMAGES, TARGETS, **options)
    return passes.forwards / len(IMAGES), passes.backwards / len(IMAGES)


def test_forward_passes_count_their_images():
    model = ToyCNN()
    with counted(model) as passes, torch.no_grad():
        model(IMAGES)
        model(images=IMAGES[:1])
    assert (passes.forwards, passes.backwards) == (4, 0)


@pytest.mark.parametrize("through", ["parameters", "images", "both"])
def test_backward_passes_count_once_whatever_they_are_for(through):
    model, images = ToyCNN(), IMAGES.clone()
    images.requires_grad_(through != "parameters")
    model.requires_grad_(through != "images")
    with counted(model) as passes:
        output = model(images)
        output[0, 0].backward(retain_graph=True)
        output[1, 1].backward()
    assert (passes.forwards, passes.backwards) == (3, 6)


def test_a_pass_that_is_broken_off_counts_and_so_does_its_way_back():
    model, kept = ToyCNN(), []

    def stop(module, args, output):
        kept.append(output)
        raise KeyboardInterrupt

    handle = model.fine.register_forward_hook(stop)
    with counted(model) as passes:
        with pytest.raises(KeyboardInterrupt):
            model(IMAGES.clone().requires_grad_())
        kept[0].sum().backward()
        handle.remove()
    assert (passes.forwards, passes.backwards) == (3, 3)


def test_nothing_stays_hooked():
    model = ToyCNN()
    with counted(model) as passes:
        model(IMAGES)
    model(IMAGES)
    assert passes.forwards == 3
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("explain", "options", "expected"),
    [
        (peers.centre, {}, (0, 0)),
        (peers.uniform, {"layer": "coarse"}, (1, 0)),
        (peers.grad_cam, {"layer": "coarse"}, (1, 1)),
        (peers.cam_of_library, {"layer": "coarse", "kind": "HiResCAM"}, (1, 1)),
        (peers.cam_of_library, {"layer": "fine", "kind": "LayerCAM"}, (1, 1)),
        (peers.score_cam, {"layer": "coarse"}, (1 + 6, 0)),  # and one for each channel
        (peers.integrated_gradients, {}, (50, 50)),
        (peers.occlusion, {}, (1 + 15 * 15, 0)),  # squares of 2, in steps of 1
        (MeaningfulPerturbation(grid=8, steps=4), {}, (4, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_peers_take_as_many_as_they_say(explain, options, expected):
    assert passes_of(explain, **options) == expected


def test_ours_takes_as_many_as_the_recipe_says():
    recipe = replace(RECIPES["paper"], inversion_steps=2, target_steps=3)
    options = {"recipe": recipe, "layer": "coarse"}
    # A look at the image, then one pass for each step of stage 1 and two for each of stage 2.
    assert passes_of(explain_ours, options=options) == (1 + 2 + 2 * 3, 2 + 2 * 3)
    assert passes_of(explain_ours_without_target, options=options) == (1 + 2, 2)


@pytest.mark.parametrize(("layer", "more"), [(("fine", "coarse"), (0, 0)), (("fine_patches", "coarse"), (5, 1))])
def test_the_default_takes_more_where_a_layer_gives_patches(layer, more):
    taken = passes_of(explain_ours, ToyPatches(), options={"layer": layer})
    assert taken == (13 + more[0], 12 + more[1])


def test_seconds_pass():
    assert seconds(lambda: sum(range(200_000)), torch.device("cpu")) > seconds(lambda: None, torch.device("cpu")) > 0
