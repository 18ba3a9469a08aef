"""Each background against another library's, and independent of the batch."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.inversion.backgrounds import background_function, blur, mean, noise, with_noise
from tests.networks import ToyCNN, random_images


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (48, 80), (8, 8)])
def test_blur_is_scipys(size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    sigma = 11 * min(size) / 224
    for image, blurred in zip(images, blur(images), strict=True):
        expected = gaussian_filter(image.numpy(), (0, sigma, sigma), mode="mirror", truncate=3.0)
        # scipy rounds the kernel's reach, we take the next whole pixel
        np.testing.assert_allclose(blurred, expected, atol=5e-3)


def test_blur_against_pils_as_the_docstring_tells():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))
    theirs = np.asarray(image.filter(ImageFilter.GaussianBlur(11))) / 255
    ours = blur(torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    inner = slice(40, -40)  # away from the borders, which PIL repeats and we mirror
    assert np.abs(theirs - ours)[inner, inner].max() < 0.02


def test_blur_commutes_with_normalising():
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(blur(images * 4 - 1), blur(images) * 4 - 1)


def test_small_images_keep_some_of_their_colours():
    image = torch.zeros(1, 3, 32, 32)
    image[..., :16] = 1
    blurred = blur(image)
    assert blurred[..., 2].mean() > 0.99
    assert blurred[..., 29].mean() < 0.01


def test_mean_is_each_images_own_colour():
    images = torch.rand(3, 3, 8, 10)
    background = mean(images)
    assert background.shape == images.shape
    torch.testing.assert_close(background[1, 2, 3, 4], images[1, 2].mean())


def test_noise():
    images = random_images(3)
    one, again = noise(images), noise(images)
    assert torch.equal(one, again)
    other = noise(images, torch.Generator().manual_seed(1))
    assert not torch.equal(one, other)
    torch.testing.assert_close(noise(images[2:]), one[2:])  # whatever the place in the batch
    large = noise(torch.rand(1, 3, 200, 200))
    torch.testing.assert_close(large.std(), torch.tensor(1 / 12**0.5), rtol=0.02, atol=0)
    torch.testing.assert_close(large.mean(), torch.tensor(0.5), rtol=0.02, atol=0)


def test_the_same_seed_gives_the_same_map_and_leaves_the_generator():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    state = generator.get_state()
    gfi = GuidedFeatureInversion(model, background="noise", generator=generator)
    first, second = gfi.explain(images), gfi.explain(images)
    assert torch.equal(first.heatmaps, second.heatmaps)
    assert torch.equal(generator.get_state(), state)
    another = GuidedFeatureInversion(model, background="noise", generator=torch.Generator().manual_seed(7))
    assert torch.equal(another.explain(images).heatmaps, first.heatmaps)
    other = GuidedFeatureInversion(model, background="noise", generator=torch.Generator().manual_seed(8))
    assert not torch.equal(other.explain(images).heatmaps, first.heatmaps)


def test_a_callable():
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    own = GuidedFeatureInversion(model, background=mean).explain(images)
    named = GuidedFeatureInversion(model, background="mean").explain(images)
    assert torch.equal(own.heatmaps, named.heatmaps)
    with pytest.raises(UsageError, match=r"background= returned Tensor\(2, 16, 16\)"):
        GuidedFeatureInversion(model, background=lambda images: images[:, 0]).explain(images)


@pytest.mark.gpu
def test_a_generator_must_be_on_the_cpu():
    with pytest.raises(UsageError, match="needs a CPU generator"):
        background_function("noise", torch.Generator("cuda"))


def test_noise_is_added_once_and_subtracted_once():
    images = random_images(3)
    noisy = list(with_noise(images, 4, 0.1))
    torch.testing.assert_close(sum(noisy) / 4, images)
    assert not torch.equal(noisy[0], noisy[2])
    ranges = images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    torch.testing.assert_close(
        (noisy[0] - images).std((1, 2, 3)) / ranges, torch.full((3,), 0.1).double(), rtol=0.1, atol=0
    )
    again = list(with_noise(images[2:], 4, 0.1))  # whatever the place in the batch
    torch.testing.assert_close(torch.cat(again), torch.cat([one[2:] for one in noisy]))


def test_no_noise_leaves_the_images():
    images = random_images(1)
    assert [torch.equal(one, images) for one in with_noise(images, 3, 0.0)] == [True] * 3
