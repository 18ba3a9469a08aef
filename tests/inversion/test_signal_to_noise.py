"""How much of the evidence is the same in all passes."""

import math
from dataclasses import replace

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion.evidence import pace_by_noise, signal_to_noise
from gfi_lightning.inversion.recipes import DEFAULT
from tests.networks import ToyCNN, random_images

CHANNELS = 20_000
IMAGES = random_images(3)


def passes(noise, count=4, seed=0):
    """A signal whose power is 1 in each channel, with noise of so much power."""
    drawn = torch.Generator().manual_seed(seed)
    signal = torch.randn(1, 1, CHANNELS, generator=drawn)
    return signal + math.sqrt(noise) * torch.randn(count, 3, CHANNELS, generator=drawn)


@pytest.mark.parametrize("count", [2, 4, 16])
@pytest.mark.parametrize("noise", [0.1, 1.0, 4.0])
def test_it_is_what_went_in_however_many_passes(noise, count):
    torch.testing.assert_close(signal_to_noise(passes(noise, count)), torch.full((3,), 1 / noise), rtol=0.1, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_it_has_no_scale(scale):
    torch.testing.assert_close(signal_to_noise(scale * passes(1.0)), signal_to_noise(passes(1.0)))


def test_its_limits():
    same = passes(1.0)[:1].expand(4, -1, -1)
    assert signal_to_noise(same).isinf().all()
    assert (signal_to_noise(torch.cat([same[:2], -same[:2]])) == 0).all()
    assert signal_to_noise(torch.zeros(4, 3, 5)).isnan().all()


def test_pace_is_that_of_the_layer_with_the_lowest_ratio():
    good, poor, none = passes(0.5), passes(2.0, seed=1), torch.zeros(4, 3, 5)
    expected = (signal_to_noise(poor) / DEFAULT.reference_signal_to_noise).sqrt()[:, None]
    for layers in ([good, poor], [poor, good]):
        torch.testing.assert_close(pace_by_noise(DEFAULT, layers, IMAGES), expected)
    same = good[:1].expand(4, -1, -1)
    assert (pace_by_noise(DEFAULT, [same, same], IMAGES) == DEFAULT.largest_learning_rate / DEFAULT.learning_rate).all()
    assert (pace_by_noise(DEFAULT, [same, torch.cat([same[:2], -same[:2]])], IMAGES) == 0).all()
    for layers in ([good, none], [none, good], [none, none], [same]):
        assert (pace_by_noise(DEFAULT, layers, IMAGES) == 1).all()


def weights(images, **changes):
    return GuidedFeatureInversion(ToyCNN().double(), recipe=replace(DEFAULT, **changes)).explain(images).weights


def test_each_image_has_steps_of_its_own():
    """Where no noise is added the passes agree by necessity, which says nothing: then all take the same."""
    images = random_images(4)
    default, alike = weights(images), weights(images, reference_signal_to_noise=0.0)
    moved = (default - alike).abs().amax(1)
    assert (moved > 1e-3).all()
    assert (weights(images, reference_signal_to_noise=1e12) - weights(images, target_steps=0)).abs().max() < 1e-4
    unmoved = {"evidence_noise": 0.0, "evidence_passes": 2}
    assert torch.equal(weights(images, **unmoved), weights(images, **unmoved, reference_signal_to_noise=0.0))


def test_an_image_of_one_value_which_gets_no_noise_takes_the_same_steps_as_all():
    images = random_images(3)
    images[1] = 0.3
    default, alike = weights(images), weights(images, reference_signal_to_noise=0.0)
    assert [torch.equal(one, other) for one, other in zip(default, alike, strict=True)] == [False, True, False]
