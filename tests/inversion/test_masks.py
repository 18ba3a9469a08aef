"""The mask of several layers: its own way back against autograd through the parts of the product."""

import pytest
import torch

from gfi_lightning.inversion.masks import mask_from, normalize_then_upsample

SIZE = (20, 24)


def by_parts(weighted_sum, size):
    return normalize_then_upsample(weighted_sum, size)


def layers(*shapes, count=3):
    maps = [torch.rand(count, channels, *size, dtype=torch.float64) for channels, *size in shapes]
    return [torch.rand(one.shape[:2], dtype=torch.float64) for one in maps], maps


def there_and_back(weights, maps, upstream, mask, power):
    weights = [one.clone().requires_grad_() for one in weights]
    found = mask_from(weights, maps, SIZE, mask, power)
    return found.detach(), *torch.autograd.grad(found, weights, upstream)


def both(weights, maps, power=2.0):
    upstream = torch.randn(len(maps[0]), 1, *SIZE, dtype=torch.float64)
    return [there_and_back(weights, maps, upstream, mask, power) for mask in (normalize_then_upsample, by_parts)]


@pytest.mark.parametrize("power", [1.0, 1.7, 2.0])
@pytest.mark.parametrize(
    "shapes", [[(5, 8, 9), (7, 4, 5)], [(3, 9, 8), (5, 7, 8), (4, 3, 2)]], ids=["two layers", "three layers"]
)
def test_it_is_autograds(shapes, power):
    own, parts = both(*layers(*shapes), power)
    torch.testing.assert_close(own, parts)
    assert own[0].amin((2, 3)).eq(0).all()
    assert own[0].amax((2, 3)).eq(1).all()
    assert all((one != 0).any(1).all() for one in own[1:])


def test_places_that_are_equally_low_or_high_share_the_gradient():
    weights, maps = layers((2, 8, 9), (3, 4, 5))
    maps[0][0, :, :5, :6] = 0  # as many places behind a ReLU
    maps[1][1, :, 2:, 1:] = 0
    maps[0][2, :, 3:5, 2:4] = 2
    maps[1][2, :, 1:3, 1:3] = 2
    torch.testing.assert_close(*both(weights, maps))


@pytest.mark.parametrize("constant", [0.0, 1 / 3])
def test_a_layer_that_tells_nothing_is_left_out(constant):
    weights, maps = layers((2, 8, 9), (3, 4, 5))
    maps[0][0] = constant
    maps[1][1] = constant
    maps[0][2] = maps[1][2] = constant
    own, parts = both(weights, maps)
    torch.testing.assert_close(own, parts)
    mask, by_finer, by_coarser = own
    assert mask[:2].amax((1, 2, 3)).eq(1).all()
    assert by_finer[0].eq(0).all()
    assert by_coarser[1].eq(0).all()
    assert all(one[2].eq(0).all() for one in own)  # nothing tells anything


def test_in_float32_it_is_the_product_of_its_parts_to_the_bit():
    weights, maps = ([one.float() for one in some] for some in layers((5, 14, 14), (7, 7, 7)))
    own, parts = (mask_from(weights, maps, (224, 224), mask, 2.0) for mask in (normalize_then_upsample, by_parts))
    assert torch.equal(own, parts)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_image(value):
    weights, maps = layers((2, 8, 9), (3, 4, 5))
    maps[0][1, 0, 3, 3] = value
    own, parts = both(weights, maps)
    torch.testing.assert_close(own, parts, equal_nan=True)
    assert all(torch.isfinite(one[[0, 2]]).all() for one in own)
