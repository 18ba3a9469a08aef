"""Upsampling and blur by matrix products are torch's, forward and back, and know no half precision."""

import pytest
import torch
from torch.nn import functional as F

from gfi_lightning.inversion.separable import gaussian_blur, upsample


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("small", "large"), [((7, 7), (224, 224)), ((3, 5), (17, 40)), ((2, 9), (9, 2)), ((4, 4), (4, 4))]
)
def test_it_is_that_of_torch(small, large, align_corners):
    maps = torch.rand(3, 1, *small, dtype=torch.float64, requires_grad=True)
    upstream = torch.rand(3, 1, *large, dtype=torch.float64)
    ours = upsample(maps, large, align_corners)
    expected = F.interpolate(maps, size=large, mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    gradients = [torch.autograd.grad(one, maps, upstream)[0] for one in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("size", "sigma", "radius"), [((32, 48), 2.0, 6), ((9, 20), 1.5, 5), ((12, 12), 1.3, 4)])
def test_blur_is_a_convolution_with_mirrored_borders(size, sigma, radius):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    positions = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(positions**2) / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = F.pad(images.flatten(0, 1)[:, None], (radius,) * 4, mode="reflect")
    expected = F.conv2d(padded, kernel[None, None]).reshape(images.shape)
    torch.testing.assert_close(gaussian_blur(images, sigma, reach=3.0), expected, rtol=0, atol=1e-13)


def test_neither_autocast_nor_a_setting_rounds_it():
    maps = torch.rand(2, 1, 7, 7)

    def mapped():
        return gaussian_blur(upsample(maps, (56, 56), align_corners=False), 2.0, reach=3.0)

    plain = mapped()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            rounded = mapped()
    finally:
        torch.set_float32_matmul_precision(precision)
    assert rounded.dtype == torch.float32
    assert torch.equal(plain, rounded)


def test_a_default_device_does_not_reach_what_is_remembered():
    images = torch.rand(1, 1, 11, 13)
    with torch.device("meta"):
        gaussian_blur(images, 1.1, reach=3.0)
        upsample(images, (23, 29), align_corners=False)
    assert gaussian_blur(images, 1.1, reach=3.0).isfinite().all()
    assert upsample(images, (23, 29), align_corners=False).isfinite().all()
