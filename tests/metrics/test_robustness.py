"""Randomisation against a loop, on layers of every kind, and sensitivity against Captum."""

import copy
import itertools

import captum.metrics
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import inception_v3
from torchvision.models.vision_transformer import VisionTransformer

from gfi_lightning import UsageError
from gfi_lightning.metrics import RandomizationSanity, Sensitivity, randomization_sanity, sensitivity_max
from tests.networks import ToyCNN, random_images

TARGETS = torch.tensor([0, 3, 1])
IMAGES = random_images(3, dtype=torch.float32)


def gradients(model, images, targets):
    """The simplest explanation that depends on all of the model."""
    images = images.clone().requires_grad_()
    scores = model(images).gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(scores, images)
    return (gradient * images).sum(1).abs().detach()


def edges(model, images, targets):
    """What every sanity check must catch: it never looks at the model."""
    return (images[:, 0] - images[:, 0].roll(1, 2)).abs()


def test_against_a_loop():
    model = ToyCNN()
    result = randomization_sanity(gradients, model, IMAGES, TARGETS, seed=5)
    assert result.layers == ("head.3", "coarse.1", "coarse.0", "fine.1", "fine.0")
    trained = gradients(model, IMAGES, TARGETS)
    random = copy.deepcopy(model)
    for number, name in enumerate(result.layers):
        torch.manual_seed(5 + number)
        random.get_submodule(name).reset_parameters()
        maps = gradients(random, IMAGES, TARGETS)
        for row in range(3):
            expected = spearmanr(maps[row].flatten(), trained[row].flatten()).statistic
            assert result.similarities[number, row].item() == pytest.approx(expected, abs=1e-5)
    assert result.similarities.min() < 0.6


def test_an_edge_detector_is_caught():
    result = randomization_sanity(edges, ToyCNN(), IMAGES, TARGETS)
    torch.testing.assert_close(result.similarities, torch.ones(5, 3))


def test_a_map_that_breaks_down_is_unlike_the_trained_models():
    calls = itertools.count()

    def explain(model, images, targets):
        first, second = torch.zeros(2, 8, 8), gradients(model, images, targets)[:1, :8, :8]
        first = first[:1] if next(calls) else second
        return torch.cat([first, second if next(calls) == 1 else second * torch.nan, second])

    result = randomization_sanity(explain, ToyCNN(), IMAGES, TARGETS, stages=1)
    assert result.similarities[0, :2].tolist() == [0, 0]
    assert result.similarities[0, 2] > 0


@pytest.mark.parametrize(
    ("stages", "layers"),
    [
        (1, ["head.3"]),
        (2, ["head.3", "fine.0"]),
        (3, ["head.3", "coarse.0", "fine.0"]),
        (5, ["head.3", "coarse.1", "coarse.0", "fine.1", "fine.0"]),
        (9, ["head.3", "coarse.1", "coarse.0", "fine.1", "fine.0"]),
    ],
)
def test_fewer_stages_are_some_of_all(stages, layers):
    all_stages = randomization_sanity(gradients, ToyCNN(), IMAGES, TARGETS)
    some = randomization_sanity(gradients, ToyCNN(), IMAGES, TARGETS, stages=stages)
    assert list(some.layers) == layers
    rows = [all_stages.layers.index(name) for name in layers]
    assert torch.equal(some.similarities, all_stages.similarities[rows])


def test_the_seed_decides():
    model = ToyCNN()
    one, same, other = (randomization_sanity(gradients, model, IMAGES, TARGETS, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.similarities, same.similarities)
    assert not torch.equal(one.similarities, other.similarities)


def test_the_model_is_left_alone():
    model = ToyCNN().train()
    model.head[3].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    seen = []

    def explain(copied, images, targets):
        assert not any(module.training for module in copied.modules())
        assert not copied.head[3].weight.requires_grad  # as in the model itself
        copied(images).sum().backward()
        seen.append(copied)
        return gradients(copied, images, targets)

    with torch.inference_mode():
        randomization_sanity(explain, model, IMAGES.clone(), TARGETS)
    assert all(one is not model for one in seen)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in model.modules())


class Peculiar(nn.Module):
    """A scale of its own, registered in another order than called, a layer that is shared, and one without use."""

    def __init__(self):
        super().__init__()
        self.classify = nn.Linear(4, 5)
        self.unused = nn.Linear(3, 3)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.weighed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 16).view(1, 1, 16))
        self.shared = nn.Conv2d(4, 4, 1)
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        tokens = (self.shared(self.stem(images)) * self.scale)[:, :, ::4, ::4].flatten(2).transpose(1, 2)
        tokens = self.weighed(self.attend(tokens, tokens, tokens)[0])
        tokens = self.shared(tokens.transpose(1, 2).unflatten(2, (4, 4))).flatten(2)
        return self.classify(tokens.mean(2))


def test_layers_of_every_kind():
    torch.manual_seed(0)
    result = randomization_sanity(gradients, Peculiar(), IMAGES, TARGETS)
    assert result.layers == (
        "classify",
        "shared",
        "weighed.parametrizations.weight",
        "weighed",
        "attend.out_proj",
        "attend",
        "stem",
        "",
    )


def test_every_layer_loses_what_it_learnt():
    torch.manual_seed(0)
    trained, stages = Peculiar(), []
    for parameter in trained.parameters():
        nn.init.normal_(parameter)

    def explain(model, images, targets):
        stages.append({name: value.clone() for name, value in model.state_dict().items()})
        return gradients(model, images, targets)

    result = randomization_sanity(explain, trained, IMAGES, TARGETS)
    own = {name: [*dict(trained.get_submodule(name).named_parameters(recurse=False))] for name in result.layers}
    changed = set()
    for number, layer in enumerate(result.layers):
        changed |= {f"{layer}.{name}".lstrip(".") for name in own[layer]}
        before, now = stages[0], stages[number + 1]
        assert {name for name in now if not torch.equal(now[name], before[name])} == changed
    assert "scale" in changed
    assert not any("unused" in name for name in changed)


def test_what_has_no_reset_keeps_its_mean_and_deviation():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(3 + 0.5 * torch.randn(3, 64, 64))
            self.one = nn.Parameter(torch.tensor(1.5))

        def forward(self, images):
            return (images * self.values).mean((2, 3)) * self.one

    model, seen = Scale(), []

    def explain(copied, images, targets):
        seen.append((copied.values.detach().clone(), copied.one.item()))
        return images[:, 0]

    randomization_sanity(explain, model, torch.rand(1, 3, 64, 64), torch.tensor([0]))
    (before, _), (after, one) = seen
    assert one == 1.5
    assert not torch.equal(before, after)
    assert abs(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) < 0.05
    assert after.mean() == pytest.approx(3, abs=0.05)
    assert after.std() == pytest.approx(0.5, abs=0.05)


def test_a_head_that_is_used_in_training_alone_is_none():
    model = inception_v3(weights=None, init_weights=False)
    images = torch.rand(1, 3, 75, 75)
    result = randomization_sanity(edges, model, images, torch.tensor([0]), stages=2)
    assert result.layers == ("fc", "Conv2d_1a_3x3.conv")


def test_a_transformer():
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # is zero at first, and then nothing has a gradient
    result = randomization_sanity(gradients, model, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
    assert result.layers[:2] == ("heads.head", "encoder.ln")
    assert result.layers[-3:] == ("encoder", "conv_proj", "")  # its positions, the patches, and the class token
    assert "encoder.layers.encoder_layer_1.self_attention.out_proj" in result.layers
    assert torch.isfinite(result.similarities).all()


def test_randomization_sanity_class():
    model = ToyCNN()
    metric = RandomizationSanity(stages=3, seed=2)
    for part in torch.arange(3).split(2):
        metric.update(gradients, model, IMAGES[part], TARGETS[part])
    expected = randomization_sanity(gradients, model, IMAGES, TARGETS, stages=3, seed=2)
    means = expected.similarities.mean(1)
    torch.testing.assert_close(metric.compute(), {"head": means[0], "all": means[-1], "per_stage": means})
    assert metric.layers == expected.layers
    with pytest.raises(UsageError, match="use one metric for each model"):
        metric.update(gradients, nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), IMAGES, TARGETS)
    metric.reset()
    assert metric.layers == ()


def seen_by(images_seen):
    def explain(model, images, targets):
        images_seen.append(images.clone())
        return gradients(model, images, targets)

    return explain


@pytest.mark.parametrize("radius", [0.02, 0.3])
def test_sensitivity_against_captum(radius):
    model, seen = ToyCNN(), []
    ours = sensitivity_max(seen_by(seen), model, IMAGES, TARGETS, radius=radius, samples=4)
    noisy = torch.stack(seen[1:], 1)  # images, samples, …
    theirs = captum.metrics.sensitivity_max(
        torch.enable_grad()(lambda images, target: (gradients(model, images[0], target),)),
        IMAGES,
        perturb_func=lambda images, radius: (noisy.flatten(0, 1),),
        n_perturb_samples=4,
        target=TARGETS,
    )
    torch.testing.assert_close(ours, theirs)
    assert ours.min() > 0


def test_the_noise_is_uniform_and_within_the_radius():
    seen, images = [], torch.cat([IMAGES, 5 * IMAGES[:1]])
    targets = torch.tensor([0, 1, 2, 0])
    sensitivity_max(seen_by(seen), ToyCNN(), images, targets, radius=0.1, samples=20)
    ranges = images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    noise = (torch.stack(seen[1:]) - images) / ranges[:, None, None, None]
    assert torch.equal(seen[0], images)
    assert noise.abs().max() == pytest.approx(0.1, abs=1e-3)
    assert noise.mean() == pytest.approx(0, abs=2e-3)
    assert noise.std() == pytest.approx(0.2 / 12**0.5, abs=1e-3)
    torch.testing.assert_close(noise[:, 0], noise[:, 3], atol=1e-5, rtol=0)  # relative to the range
    assert (noise[0] - noise[1]).abs().max() > 0.1


def test_sensitivity_does_not_depend_on_the_batch():
    model = ToyCNN()
    together = sensitivity_max(gradients, model, IMAGES, TARGETS)
    alone = [sensitivity_max(gradients, model, IMAGES[row : row + 1], TARGETS[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-3, atol=1e-6)


def test_maps_of_norm_zero():
    switch = iter([0.0, 0.0, 0.5])

    def explain(model, images, targets):
        return torch.full((3, 2, 2), next(switch)) * torch.tensor([0.0, 1.0, 2.0])[:, None, None]

    assert sensitivity_max(explain, ToyCNN(), IMAGES, TARGETS, samples=2).tolist() == [0, 1, 2]


def test_sensitivity_leaves_modes_and_random_numbers():
    model = ToyCNN().train()
    model.fine.eval()
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()

    def explain(model, images, targets):
        assert not any(module.training for module in model.modules())
        torch.rand(1)
        return gradients(model, images, targets)

    with torch.inference_mode():
        sensitivity_max(explain, model, IMAGES.clone(), TARGETS, samples=1)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_sensitivity_class():
    model, metric = ToyCNN(), Sensitivity(radius=0.1, samples=3, seed=4)
    for part in torch.arange(3).split(2):
        metric.update(gradients, model, IMAGES[part], TARGETS[part])
    expected = sensitivity_max(gradients, model, IMAGES, TARGETS, radius=0.1, samples=3, seed=4).mean()
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("metric", [RandomizationSanity, Sensitivity])
@pytest.mark.parametrize(
    ("explain", "images", "targets", "message"),
    [
        (gradients, IMAGES[0], TARGETS, r"images are Tensor\(3, 16, 16\)"),
        (gradients, IMAGES * torch.nan, TARGETS, "images hold NaN"),
        (gradients, IMAGES, TARGETS[:2], r"targets have shape \(2,\)"),
        (gradients, IMAGES, TARGETS / 2, "targets are .*integer tensor"),
        (lambda model, images, targets: images, IMAGES, TARGETS, r"explain= returned Tensor\(3, 3, 16, 16\)"),
        (lambda model, images, targets: images[:2, 0], IMAGES, TARGETS, r"explain= returned Tensor\(2, 16, 16\)"),
        (lambda model, images, targets: images[:, 0] / 0, IMAGES, TARGETS, "that explain= returned.* holds NaN"),
    ],
)
def test_misuse_of_both_classes(metric, explain, images, targets, message):
    with pytest.raises(UsageError, match=message):
        metric().update(explain, ToyCNN(), images, targets)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomizationSanity(stages=0), "stages=0"),
        (lambda: RandomizationSanity().update(edges, nn.Flatten(), IMAGES, TARGETS), "Flatten.* has no parameters"),
        (lambda: Sensitivity(radius=0), "radius=0"),
        (lambda: Sensitivity(samples=0), "samples=0"),
        (lambda: Sensitivity(samples=2.5), "samples=2.5 must be a whole number"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(UsageError, match=message):
        call()
