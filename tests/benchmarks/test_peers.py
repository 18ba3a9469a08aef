"""Other methods give what their definitions say, on a network small enough to compute them by hand."""

import pytest
import torch
from bench import peers
from torch.nn import functional as F

from tests.networks import ToyCNN, random_images

TARGETS = torch.tensor([3, 0])


@pytest.fixture(scope="module")
def by_hand():
    """Feature maps of the layer "coarse", the logits' gradients there, and the images."""
    model, images = ToyCNN(), random_images(2, dtype=torch.float32)
    maps = model.coarse(model.pool(model.fine(images))).detach().requires_grad_()
    (gradients,) = torch.autograd.grad(model.head(maps).gather(1, TARGETS[:, None]).sum(), maps)
    return model, images, maps.detach(), gradients


def scaled(maps):
    """Least 0, largest 1, as pytorch-grad-cam does it."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


def upsampled(maps):
    return F.interpolate(maps[:, None], size=(16, 16), mode="bilinear")[:, 0]


def test_grad_cam(by_hand):
    model, images, maps, gradients = by_hand
    expected = (gradients.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    assert torch.allclose(peers.grad_cam(model, images, TARGETS, layer="coarse"), upsampled(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "weighted"),
    [
        ("HiResCAM", lambda maps, gradients: gradients * maps),
        ("LayerCAM", lambda maps, gradients: gradients.relu() * maps),
    ],
)
def test_cams_of_the_library(by_hand, kind, weighted):
    model, images, maps, gradients = by_hand
    expected = scaled(upsampled(scaled(weighted(maps, gradients).sum(1).relu())))
    assert (expected.amax((1, 2)) > 0).all()
    found = peers.cam_of_library(model, images, TARGETS, layer="coarse", kind=kind)
    assert torch.allclose(found, expected, atol=1e-4)


def test_score_cam_weighs_by_the_masked_images_logits(by_hand):
    model, images, maps, _ = by_hand
    expected = []
    for image, channels, target in zip(images, maps, TARGETS, strict=True):
        masks = F.interpolate(channels[None], size=(16, 16), mode="bilinear", align_corners=True)[0]
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        with torch.no_grad():
            logits = model(image * ((masks - low) / (high - low + 1e-8))[:, None])[:, target]
        expected.append((logits.softmax(0)[:, None, None] * channels).sum(0))
    expected = scaled(upsampled(scaled(torch.stack(expected).relu())))
    assert torch.allclose(peers.score_cam(model, images, TARGETS, layer="coarse"), expected, atol=1e-4)


def test_uniform_is_the_sum_of_the_maps(by_hand):
    model, images, maps, _ = by_hand
    total = maps.sum(1)
    expected = upsampled(total - total.amin((1, 2), keepdim=True))
    assert torch.allclose(peers.uniform(model, images, TARGETS, layer="coarse"), expected, atol=1e-5)


def test_occlusion_is_what_covering_costs(by_hand):
    model, images, _, _ = by_hand
    side, stride = 2, 1
    costs, covers = torch.zeros(2, 16, 16), torch.zeros(16, 16)
    with torch.no_grad():
        whole = model(images).gather(1, TARGETS[:, None])[:, 0]
        for top in range(0, 16 - side + 1, stride):
            for left in range(0, 16 - side + 1, stride):
                covered = images.clone()
                covered[:, :, top : top + side, left : left + side] = 0
                cost = whole - model(covered).gather(1, TARGETS[:, None])[:, 0]
                costs[:, top : top + side, left : left + side] += cost[:, None, None]
                covers[top : top + side, left : left + side] += 1
    expected = (costs / covers).relu()
    assert torch.allclose(peers.occlusion(model, images, TARGETS), expected, atol=1e-4)


def test_integrated_gradients_add_up_channels(by_hand):
    model, images, _, _ = by_hand
    steps = 400
    total = torch.zeros_like(images)
    for share in (torch.arange(steps) + 0.5) / steps:
        at = (images * share).requires_grad_()
        total += torch.autograd.grad(model(at).gather(1, TARGETS[:, None]).sum(), at)[0] / steps
    expected = (images * total).abs().sum(1)
    found = peers.integrated_gradients(model, images, TARGETS)
    assert (found - expected).abs().mean() < 0.05 * expected.mean()  # 50 steps against 400


def test_the_centre_looks_at_nothing():
    maps = peers.centre(None, torch.rand(2, 3, 8, 16), TARGETS)
    assert maps.shape == (2, 8, 16)
    assert torch.equal(maps[0], maps[0].flip(0, 1))
    assert maps[0].argmax() in (3 * 16 + 7, 3 * 16 + 8, 4 * 16 + 7, 4 * 16 + 8)


def test_no_gradients_are_left_behind(by_hand):
    model, images, _, _ = by_hand
    peers.grad_cam(model, images, TARGETS, layer="coarse")
    peers.cam_of_library(model, images, TARGETS, layer="coarse", kind="LayerCAM")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.coarse._forward_hooks
