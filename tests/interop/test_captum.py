"""Captum's metrics take our maps, and our method, as they are."""

import pytest
import torch

from gfi_lightning import GuidedFeatureInversion, UsageError
from tests.networks import ToyCNN, random_images

pytestmark = pytest.mark.captum

IMAGES, LABELS = random_images(4, dtype=torch.float32), torch.tensor([0, 1, 2, 1])
NOISE = 0.05


@pytest.fixture(scope="module")
def explained():
    model = ToyCNN()
    return model, GuidedFeatureInversion(model, layer="coarse")


def perturbed(images):
    """Captum's form of a perturbation: what is taken away, and what is left."""
    noise = NOISE * torch.randn(images.shape)
    return noise, images - noise


def test_infidelity_is_what_a_slow_loop_computes(explained):
    from captum.metrics import infidelity

    model, gfi = explained
    maps = gfi.attribute(IMAGES, LABELS)
    assert maps.shape == (4, 1, 16, 16)
    torch.manual_seed(0)
    found = infidelity(model, perturbed, IMAGES, maps.expand_as(IMAGES), target=LABELS, n_perturb_samples=5)
    torch.manual_seed(0)
    every = IMAGES.repeat_interleave(5, dim=0)
    noise, left = perturbed(every)
    for row, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        errors = []
        for place in range(5 * row, 5 * row + 5):
            predicted = (noise[place] * maps[row]).sum()
            change = model(image[None])[0, label] - model(left[place : place + 1])[0, label]
            errors.append((predicted - change).item() ** 2)
        assert float(found[row]) == pytest.approx(sum(errors) / 5, rel=1e-3)
    assert (found > 0).all()


def test_sensitivity_is_what_a_slow_loop_computes(explained):
    from captum.metrics import sensitivity_max

    _, gfi = explained
    nudges = []

    def nudged(images):
        nudges.append(images + 0.02 * torch.randn_like(images))
        return nudges[-1]

    found = sensitivity_max(gfi.attribute, IMAGES, perturb_func=nudged, target=LABELS, n_perturb_samples=3)
    (others,) = nudges
    assert others.shape == (12, 3, 16, 16)
    for row in range(4):
        maps = [
            gfi.attribute(one[None], LABELS[row : row + 1]) for one in (IMAGES[row], *others[3 * row : 3 * row + 3])
        ]
        largest = max(float((other - maps[0]).norm() / maps[0].norm()) for other in maps[1:])
        assert float(found[row]) == pytest.approx(largest, abs=1e-4)
    assert ((found > 1e-3) & (found < 1)).all()


def test_one_target_for_all_and_the_predicted_one(explained):
    from captum.metrics import sensitivity_max

    model, gfi = explained
    few = {"n_perturb_samples": 1, "perturb_func": lambda images: images}
    assert (sensitivity_max(gfi.attribute, IMAGES, target=2, **few) < 1e-5).all()
    assert (sensitivity_max(gfi.attribute, IMAGES, **few) < 1e-5).all()
    predicted = model(IMAGES).argmax(1)
    assert torch.equal(gfi.attribute(IMAGES), gfi.attribute(IMAGES, predicted))


def test_what_is_given_in_a_tuple_comes_back_in_one(explained):
    _, gfi = explained
    (maps,) = gfi.attribute((IMAGES,), [0, 1, 2, 1])
    assert torch.equal(maps, gfi.attribute(IMAGES, LABELS))
    with pytest.raises(UsageError, match=r"inputs are tuple\(.*; expected is a single tensor of images \(N, C, H, W\)"):
        gfi.attribute((IMAGES, IMAGES), LABELS)
