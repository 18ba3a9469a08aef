"""Min-max scaling, and its gradient against autograd's through its parts."""

import pytest
import torch

from gfi_lightning.inversion.masks import mask_from, minmax


def by_parts(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def with_gradient(scale, maps, upstream):
    maps = maps.clone().requires_grad_()
    scaled = scale(maps)
    return scaled.detach(), torch.autograd.grad(scaled, maps, upstream)[0]


def test_it_is_autograds():
    maps, upstream = torch.randn(3, 2, 5, 7, dtype=torch.float64), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(with_gradient(minmax, maps, upstream), with_gradient(by_parts, maps, upstream))


def test_positions_that_are_equally_low_or_high_share_the_gradient():
    maps, upstream = torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    maps[0, 0, 0, :3] = -5  # three lowest
    maps[0, 1, 1:3, 2] = 7  # two highest
    torch.testing.assert_close(with_gradient(minmax, maps, upstream), with_gradient(by_parts, maps, upstream))


def test_a_constant_map_is_zero_and_has_no_gradient():
    maps = torch.randn(2, 1, 4, 4)
    maps[0] = 1 / 3
    scaled, gradient = with_gradient(minmax, maps, torch.randn(2, 1, 4, 4))
    assert (scaled[0] == 0).all()
    assert (gradient[0] == 0).all()
    assert scaled[1].max() == 1
    assert (gradient[1] != 0).all()


def test_what_differs_by_rounding_alone_is_constant():
    maps = 1 + 3 * torch.finfo(torch.float32).eps * torch.rand(1, 1, 4, 4)
    assert (minmax(maps) == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_is_zero_and_has_no_gradient(value):
    maps, upstream = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    maps[0, 0, 1, 2] = value
    upstream[0, 0, 3, 3] = torch.nan
    scaled, gradient = with_gradient(minmax, maps, upstream)
    assert (scaled[0] == 0).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).all()


def a_layer(weights):
    return minmax((weights[:, :, None, None] * torch.rand(1, 3, 4, 4)).sum(1, keepdim=True))


def two_layers(weights):
    return mask_from([weights, weights], [torch.rand(1, 3, 8, 8), torch.rand(1, 3, 4, 4)], (16, 16))


@pytest.mark.parametrize("mask", [a_layer, two_layers])
def test_a_gradient_of_the_gradient_is_refused(mask):
    weights = torch.rand(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(mask(weights).square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
