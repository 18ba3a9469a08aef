"""Whatever happens inside, everything is as it was afterwards."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.guard import preserved_rng, undisturbed
from tests.networks import ToyCNN, random_images


class Restless(ToyCNN):
    """Draws from every random stream and changes its buffers whenever it is run, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(3))
        self.register_buffer("temporary", torch.ones(2), persistent=False)

    def forward(self, images):
        self.calls += 1
        self.last = images.detach().mean((0, 2, 3))  # replaced, not written into
        self.temporary.mul_(2)
        random.random(), np.random.rand(), torch.rand(1)
        if self.calls == 5 and self.fails:
            raise RuntimeError("in mid-explanation")
        return super().forward(images)


def snapshot(model):
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "values": {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()},
        "buffers": {name: (id(value), value.clone()) for name, value in model.named_buffers()},
        "versions": [value._version for value in model.parameters()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_left_as_it_was(fails):
    model = Restless()
    model.fails = fails
    model.train()
    model.coarse.eval()  # a frozen part
    model.fine.requires_grad_(False)
    images = random_images(2, dtype=torch.float32)
    model(images).sum().backward()
    before = snapshot(model)
    if fails:
        with pytest.raises(RuntimeError, match="in mid-explanation"):
            GuidedFeatureInversion(model).explain(images)
    else:
        GuidedFeatureInversion(model).explain(images)
    after = snapshot(model)
    for name in before:
        assert same(before[name], after[name]), name


def test_a_live_graph_can_still_be_backpropagated():
    model = ToyCNN().train()
    images = random_images(2, dtype=torch.float32)
    expected = torch.autograd.grad(model(images).sum(), list(model.parameters()))
    loss = model(images).sum()
    GuidedFeatureInversion(model).explain(images)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(a.shape == b.shape for a, b in zip(gradients, expected, strict=True))


def test_seeded_inside_and_restored_outside():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    torch.manual_seed(3)
    with preserved_rng(seed=0):
        first = draw()
    between = draw()
    with preserved_rng(seed=0):
        assert draw() == first
    torch.manual_seed(3)
    assert float(torch.rand(1)) == between[2]


def test_own_train_methods_are_not_called():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("merges weights in eval mode, say")

    module = nn.Sequential(nn.Dropout())
    module.add_module("merging", Merging(2, 2))
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
    assert all(part.training for part in module.modules())


def test_a_compiled_model_is_explained_by_its_own_layers():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    expected = GuidedFeatureInversion(model, "coarse").explain(images)
    compiled = torch.compile(model, backend="eager")
    compiled(images)  # compiled before any hook is there
    explanation = GuidedFeatureInversion(compiled, "_orig_mod.coarse").explain(images)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)
