"""Whatever happens inside, everything is as it was afterwards."""

import copy
import random
from collections import deque
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from PIL.ImageFile import Parser as Dump
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.guard import _preserved, preserved_rng, undisturbed, unnoticed
from gfi_lightning.inversion.recipes import DEFAULT
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


class Outside:
    """Not the module's, and reached by its hooks alone."""

    def __init__(self):
        self.seen, self.count = [], 0

    def see(self, module, args, output=None):
        self.seen.append(output)
        self.count += 1
        return output


TOTAL = 0


def hooks_that_write():
    """Hooks of every kind, and how to read what they have written."""
    names, count, outside, bound, queue = [], 0, Outside(), Outside(), deque(maxlen=3)

    def by_variable(module, args, output):
        nonlocal count
        global TOTAL
        count, TOTAL = count + 1, TOTAL + 1
        return output

    hooks = [
        lambda module, args, output: names.append(type(module).__name__),
        by_variable,
        bound.see,
        partial(Outside.see, outside),
        partial(lambda written, *_: written.append(1), queue),
    ]
    return hooks, lambda: (len(names), count, TOTAL, bound.count, len(bound.seen), outside.count, len(queue))


def test_what_hooks_write_down_is_about_the_run_alone():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    hooks, written = hooks_that_write()
    for hook in hooks:
        model.coarse.register_forward_hook(hook)
    model.coarse.register_forward_pre_hook(lambda *_: hooks[0](*_, None))
    model(images)
    before = written()
    with unnoticed(model):
        GuidedFeatureInversion(model).explain(images)
        assert written() != before, "the hooks did not even run"
    assert written() == before
    model(images)
    assert all(now > then for now, then in zip(written(), before, strict=True))


def test_backward_hooks_are_not_called_and_forward_hooks_are():
    """A forward hook may be what feeds another part of the model, though it returns nothing."""

    class Feeding(ToyCNN):
        def __init__(self):
            super().__init__()
            self.features = {}
            self.fine.register_forward_hook(self.keep)
            self.pool.register_forward_hook(lambda module, args, output: output * 2)

        def keep(self, module, args, output):
            self.features["fine"] = output

        def forward(self, images):
            self.fine(images)
            return self.head(self.coarse(self.pool(self.features["fine"])))

    model, images, calls = Feeding(), random_images(2, dtype=torch.float32), []
    model.fine.register_full_backward_hook(lambda *_: calls.append("backward"))
    with unnoticed(model):
        GuidedFeatureInversion(model, "coarse").explain(images)
        assert calls == []
    assert model.features == {}
    assert len(model.fine._forward_hooks) == len(model.fine._backward_hooks) == len(model.pool._forward_hooks) == 1


def test_by_itself_the_explainer_calls_all_hooks():
    """Who counts passes by a hook counts them all."""
    model, images, calls = ToyCNN(), random_images(2, dtype=torch.float32), []
    model.fine.register_forward_hook(lambda *_: calls.append(1))
    GuidedFeatureInversion(model, "coarse").explain(images)
    assert len(calls) == 1 + DEFAULT.inversion_steps + 1 + DEFAULT.target_steps  # the evidence takes one


def test_modules_hidden_in_containers_are_run_in_eval_mode_too():
    class Hiding(ToyCNN):
        def __init__(self):
            super().__init__()
            self.hidden = {"teacher": [nn.Identity()], "norm": nn.BatchNorm2d(3)}

        def forward(self, images):
            return super().forward(self.hidden["norm"](images))

    model = Hiding()
    before = model.hidden["norm"].running_mean.clone()
    GuidedFeatureInversion(model).explain(random_images(2, dtype=torch.float32))
    assert model.hidden["norm"].training
    assert torch.equal(model.hidden["norm"].running_mean, before)


def test_reentrant_checkpointing():
    class Recomputing(ToyCNN):
        def forward(self, images):
            return self.head(checkpoint(lambda x: self.coarse(self.pool(x)), self.fine(images), use_reentrant=True))

    images = random_images(2, dtype=torch.float32)
    expected = GuidedFeatureInversion(ToyCNN(), "coarse").explain(images)
    apply = CheckpointFunction.apply
    explanation = GuidedFeatureInversion(Recomputing(), "coarse").explain(images)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)
    assert CheckpointFunction.apply == apply


@dataclass(frozen=True, slots=True)
class Slotted:
    seen: list


def test_state_some_levels_deep_is_put_back_and_other_peoples_objects_are_not():
    class Remembering(ToyCNN):
        def __init__(self):
            super().__init__()
            self.memory = {"inner": [Slotted([])]}
            self.client = Dump()  # of a library, perhaps at work in another thread

        def forward(self, images):
            self.memory["inner"][0].seen.append(1)
            self.client.kept = True
            return super().forward(images)

    model = Remembering()
    with unnoticed(model):
        model(random_images(1, dtype=torch.float32))
        assert model.memory["inner"][0].seen == [1]
    assert model.memory["inner"][0].seen == []
    assert model.client.kept


def test_restoring_goes_on_where_something_fails():
    done = []

    def fail():
        raise BufferError

    with pytest.raises(BufferError), _preserved([partial(done.append, 1), fail, partial(done.append, 2)]):
        pass
    assert done == [2, 1]


def test_a_buffer_that_forward_ties_to_its_graph_is_free_again():
    class Averaging(ToyCNN):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, images):
            self.mean += images.mean()
            return super().forward(images)

    model = Averaging()
    GuidedFeatureInversion(model).explain(random_images(2, dtype=torch.float32))
    assert model.mean == 0
    assert not model.mean.requires_grad
    copy.deepcopy(model)
