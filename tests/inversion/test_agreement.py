"""Where the kept and the removed image ask the same of the mask, steps are larger."""

import math
from dataclasses import replace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion import stages
from gfi_lightning.inversion.recipes import DEFAULT
from gfi_lightning.inversion.stages import _pace_by_agreement, agreement
from gfi_lightning.inversion.start import Start
from tests.networks import ToyCNN, random_images

ONE = torch.tensor([1.0, 0.0]).expand(5, 1, 1, 2)
ANGLES = torch.tensor([0.0, 30.0, 89.0, 90.0, 150.0]).deg2rad()
OTHER = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)[:, None, None]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_it_is_the_cotangent_of_the_angle_whatever_the_scale(scale):
    found = agreement(ONE, scale * OTHER)
    assert found[0].isinf()
    expected = torch.tensor([1 / math.tan(math.radians(30)), 1 / math.tan(math.radians(89)), 0.0, 0.0])
    torch.testing.assert_close(found[1:], expected, rtol=1e-4, atol=1e-6)


def test_with_much_noise_it_is_the_ratio_of_powers():
    drawn = torch.Generator().manual_seed(0)
    signal, *noise = torch.randn(3, 2, 1, 100, 1000, generator=drawn)
    ratio = torch.tensor([0.02, 0.1])
    one, other = (signal * ratio.sqrt()[:, None, None, None] + part for part in noise)
    torch.testing.assert_close(agreement(one, other), ratio / (1 + 2 * ratio).sqrt(), rtol=0.1, atol=0)


def test_pace_is_never_below_that_of_all_nor_above_the_largest():
    most = DEFAULT.largest_learning_rate / DEFAULT.learning_rate
    expected = torch.tensor([most, most, 1.0, 1.0, 1.0])
    torch.testing.assert_close(_pace_by_agreement(DEFAULT, ONE, OTHER)[:, 0], expected)
    loose = replace(DEFAULT, reference_agreement=0.5)
    torch.testing.assert_close(_pace_by_agreement(loose, ONE, OTHER)[1, 0], torch.tensor(2 * math.sqrt(3)))
    assert _pace_by_agreement(DEFAULT, ONE, 0 * OTHER).tolist() == [[1.0]] * 5


def weights(layer, images, **changes):
    model, recipe = ToyCNN().double(), replace(DEFAULT, **changes)
    return GuidedFeatureInversion(model, layer, recipe=recipe).explain(images).weights


def test_it_is_asked_of_one_layer_alone():
    images = random_images(4)
    assert torch.equal(weights(None, images), weights(None, images, reference_agreement=0.0))
    default, alike = weights("coarse", images), weights("coarse", images, reference_agreement=0.0)
    assert ((default - alike).abs().amax(1) > 1e-4).any()
    assert torch.equal(weights("coarse", images, reference_agreement=1e12), alike)


@pytest.fixture
def paces(monkeypatch):
    """Of all images that were asked."""
    seen = []

    def noted(*args):
        seen.append(_pace_by_agreement(*args))
        return seen[-1]

    monkeypatch.setattr(stages, "_pace_by_agreement", noted)
    return seen


def test_no_image_depends_on_the_others_of_its_batch(paces):
    images = random_images(4)
    together, *alone = (weights("coarse", some, reference_agreement=1.0) for some in (images, *images.split(1)))
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(paces[0], torch.cat(paces[1:]))
    assert len(paces[0].unique()) == 4, "a limit would hide what depends on what"


@pytest.mark.parametrize("changes", [{}, {"one_optimizer": True}, {"evidence_passes": 0, "evidence_noise": 0.0}])
def test_it_is_asked_at_the_first_step_alone(paces, changes):
    images = random_images(4)
    default, alike = (weights("coarse", images, reference_agreement=one, **changes) for one in (1.0, 0.0))
    assert len(paces) == 1
    assert not torch.equal(default, alike)


def test_who_starts_from_an_earlier_run_takes_the_same_steps_as_all():
    model, images = ToyCNN().double(), random_images(4)
    default, alike = (
        GuidedFeatureInversion(model, "coarse", recipe=replace(DEFAULT, reference_agreement=one)) for one in (1.0, 0.0)
    )
    inversion = default.invert(images)
    start = Start.of(inversion, default.refine(inversion, 1))
    start.foreground[2], start.weights[2] = torch.nan, torch.nan  # which starts cold
    warm, alike = (gfi.explain(images, 1, start=start).weights for gfi in (default, alike))
    assert [torch.equal(*pair) for pair in zip(warm, alike, strict=True)] == [True, True, False, True]
    torch.testing.assert_close(warm[2], default.explain(images, 1).weights[2])
