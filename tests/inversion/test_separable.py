"""Upsampling by matrix products is torch's, forward and back, and knows no half precision."""

import pytest
import torch
from torch.nn import functional as F

from gfi_lightning.inversion.recipes import upsample


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


def test_neither_autocast_nor_a_setting_rounds_it():
    maps = torch.rand(2, 1, 7, 7)
    plain = upsample(maps, (56, 56), align_corners=False)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            rounded = upsample(maps, (56, 56), align_corners=False)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert rounded.dtype == torch.float32
    assert torch.equal(plain, rounded)
