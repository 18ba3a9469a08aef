"""Networks of three libraries are explained as they are: base layers, heatmaps, and nothing left behind."""

import os
from contextlib import contextmanager

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.network import Network
from gfi_lightning.inversion.scores import logits_of
from tests.inversion.architectures import TIMM, TORCHVISION, TRANSFORMERS, images_for, seeded

EVERY = [
    *(pytest.param(architecture, id=f"torchvision {name}") for name, architecture in TORCHVISION.items()),
    *(pytest.param(architecture, id=f"timm {name}", marks=pytest.mark.timm) for name, architecture in TIMM.items()),
    *(
        pytest.param(architecture, id=f"transformers {name}", marks=pytest.mark.transformers)
        for name, architecture in TRANSFORMERS.items()
    ),
]


def state_of(model):
    """All that an explanation must leave alone."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "hooks": {name: (len(one._forward_hooks), len(one._backward_hooks)) for name, one in model.named_modules()},
        "random": torch.get_rng_state(),
    }


def difference_by_quadrant(one, other):
    """How much two sets of maps (1, K, h, w) differ in each quadrant; the middle row or column belongs to none."""
    differences = (one - other).square().mean((0, 1))
    height, width = (size // 2 for size in differences.shape)
    rows = {"upper": slice(0, height), "lower": slice(-height, None)}
    columns = {"left": slice(0, width), "right": slice(-width, None)}
    return {
        f"{vertical} {horizontal}": differences[row, column].mean().item()
        for vertical, row in rows.items()
        for horizontal, column in columns.items()
    }


@pytest.mark.parametrize("architecture", EVERY)
def test_an_architecture(architecture):
    model, images = seeded(architecture), images_for(architecture, 1)
    network = Network(model, None, None, None, resolutions=2)
    maps = network.look(images).maps
    assert tuple(tuple(one.shape[1:]) for one in maps) == architecture.shapes
    assert architecture.layers in (None, tuple(map(str, network.base)))
    # The class depends on every position.
    for gradient in network.gradients(images, lambda output: logits_of(output)[:, 3]):
        assert gradient.any(1).all()
    if architecture.looks_where_it_is:
        half = architecture.side // 2
        changed = images.clone()
        changed[:, :, :half, -half:] += torch.randn(3, half, half, generator=torch.Generator().manual_seed(0))
        differences = difference_by_quadrant(maps[0], network.look(changed).maps[0])
        assert max(differences, key=differences.get) == "upper right"

    model.train()
    before = state_of(model)
    explanation = GuidedFeatureInversion(model).explain(images)
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
    assert explanation.heatmaps.shape == (1, architecture.side, architecture.side)
    assert torch.isfinite(explanation.heatmaps).all()
    assert explanation.heatmaps.min() >= 0
    assert explanation.heatmaps.max() <= 1
    assert not explanation.degenerate.any()
    assert explanation.heatmaps.std() > 0.01


@contextmanager
def process_group(folder):
    """Of all ranks; the one that others have left open, or a new one."""
    if distributed.is_initialized():
        yield
        return
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(f"{folder}/store", count), rank=rank, world_size=count
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def explained_whole_and_sharded(folder):
    architecture = TORCHVISION["ViT"]
    model, images = seeded(architecture), images_for(architecture, 2)
    whole = GuidedFeatureInversion(model).explain(images)
    with process_group(folder):
        mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))
        for part in (*model.encoder.layers, model):
            fully_shard(part, mesh=mesh)
        sharded = GuidedFeatureInversion(model).explain(images)
    return (whole.heatmaps - sharded.heatmaps).abs().max().item(), sharded.degenerate.any().item()


@pytest.mark.fsdp_on_cpu
def test_a_layer_within_a_part_that_is_spread_over_the_ranks(tmp_path, two_ranks):
    for difference, degenerate in two_ranks(explained_whole_and_sharded, tmp_path):
        assert difference < 1e-4
        assert not degenerate
