"""A model that returns probabilities is explained as the same one that returns logits."""

import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.activations import activation_of, logits_before
from gfi_lightning.inversion.network import Network
from gfi_lightning.metrics import insertion_deletion
from tests.networks import ToyCNN, random_images

FIELDS = ("heatmaps", "score", "preserved", "removed", "weights", "foreground", "predicted", "predicted_score")
LOGITS = 4 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class EndsIn(nn.Module):
    """A network, and an activation behind its logits, or one of them."""

    def __init__(self, activation, single=False, **options):
        super().__init__()
        self.network = ToyCNN(**options)
        self.activation = activation
        self.single = single

    def forward(self, images):
        logits = self.network(images)
        return self.activation(logits[:, 0] if self.single else logits)


def softmax_by_hand(logits):
    exponentials = logits.exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def in_a_mapping(logits):
    return {"loss": logits.sum(), "probabilities": logits.softmax(1)}


def raised(*_):
    raise AssertionError("a pass that is not needed")


TWINS = {
    "softmax": ("softmax", False, lambda logits: logits.softmax(1)),
    "softmax by hand": ("softmax", False, softmax_by_hand),
    "softmax in a mapping": ("softmax", False, in_a_mapping),
    "sigmoid of each": ("sigmoid", False, torch.sigmoid),
    "sigmoid of each, in place": ("sigmoid", False, torch.sigmoid_),
    "sigmoid of one": ("softmax", True, lambda logits: logits.sigmoid()[:, None]),
    "sigmoid of one, as a vector": ("sigmoid", True, lambda logits: logits[:, None].sigmoid().squeeze(1)),
}


@pytest.mark.parametrize("name", TWINS)
def test_it_is_explained_as_its_twin_without(name):
    score, single, activation = TWINS[name]
    images = random_images(4)
    targets = torch.tensor([0, 1, 1, 0]) if single else torch.tensor([0, 3, 1, 2])
    plain, ended = (EndsIn(one, single).double().eval() for one in (nn.Identity(), activation))
    expected = GuidedFeatureInversion(plain, score=score).explain(images, targets)
    found = GuidedFeatureInversion(ended, score=score).explain(images, targets)
    for field in FIELDS:
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-6, atol=1e-6, msg=field)
    areas = [insertion_deletion(one, images, expected.heatmaps, targets, score=score) for one in (plain, ended)]
    torch.testing.assert_close(areas[1].insertion, areas[0].insertion)


def test_a_single_image_and_each_further_explanation_are_understood_alike():
    images, targets = random_images(3), torch.tensor([0, 1, 0])
    plain, ended = (EndsIn(one, single=True).double().eval() for one in (nn.Identity(), nn.Sigmoid()))
    expected = GuidedFeatureInversion(plain).explain(images[:1], targets[:1])
    gfi = GuidedFeatureInversion(ended)
    for _ in range(2):
        torch.testing.assert_close(gfi.explain(images[:1], targets[:1]).score, expected.score)


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_logits_come_back(kind, classes):
    logits = LOGITS[:, :classes]
    probabilities = logits.softmax(1) if kind == "softmax" else logits.sigmoid()
    back = logits_before(kind, probabilities)
    expected = logits.log_softmax(1) if kind == "softmax" else logits
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_certainty_stays_finite(kind):
    probabilities = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    logits = logits_before(kind, probabilities)
    (gradient,) = torch.autograd.grad(logits.sum(), probabilities)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(gradient).all()
    assert logits.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_softmax_is_told_by_its_sum_in_each_type(dtype):
    many = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    assert activation_of(many.softmax(1).to(dtype), raised) == "softmax"


def test_logits_are_left_alone_without_another_pass():
    assert activation_of(LOGITS, raised) == ""
    assert activation_of(LOGITS.log_softmax(1), raised) == ""
    assert activation_of("nothing", raised) == ""
    assert activation_of(torch.rand(2, 3, 4, 4), raised) == ""  # of no classes
    assert logits_before("", LOGITS) is LOGITS


def test_small_logits_are_not_taken_for_a_sigmoid():
    small = torch.full((3, 5), 0.3)
    assert activation_of(small, lambda: small.requires_grad_() * 1) == ""
    assert activation_of(small, lambda: (small.requires_grad_() * 3).sigmoid()) == "sigmoid"
    assert activation_of(small, lambda: (small.requires_grad_() * 3).sigmoid() * 2) == ""
    assert activation_of(small, lambda: None) == ""


def test_what_is_not_finite_tells_nothing_yet():
    images = random_images(2)
    network = Network(EndsIn(nn.Softmax(1)).double().eval(), None, None, None, needs_logits=True)
    broken = torch.full((2, 5), torch.nan)
    assert network.understood(broken, images) is broken
    output = network.raw_output(images)
    torch.testing.assert_close(network.understood(output, images), output.log())


def test_a_score_of_ones_own_is_given_the_models_own_output():
    seen = []

    def score(output, targets):
        seen.append(output.detach())
        return output[range(len(targets)), targets].log()

    gfi = GuidedFeatureInversion(EndsIn(nn.Softmax(1)).double().eval(), score=score)
    gfi.explain(random_images(2), 1)
    for output in seen:
        torch.testing.assert_close(output.sum(1), torch.ones(len(output), dtype=output.dtype))
