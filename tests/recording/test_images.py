"""Images come back as people know them."""

import torch
from torchvision.transforms.functional import normalize

from gfi_lightning.recording.images import denormalized, in_unit_range, stretched

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_denormalised():
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(denormalized(normalize(images, MEAN, STD), MEAN, STD), images)
    torch.testing.assert_close(denormalized((images.bfloat16() - 0.5) / 0.5, [0.5], [0.5]), images, atol=0.02, rtol=0)


def test_means_for_bytes():
    images = torch.rand(2, 3, 4, 4)
    mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
    torch.testing.assert_close(denormalized(normalize(255 * images, mean, std), mean, std), images)


def test_own_range():
    images = torch.stack([torch.linspace(-3, 5, 12).view(3, 2, 2), torch.full((3, 2, 2), 7.0)])
    shown = stretched(images)
    torch.testing.assert_close(shown[0].flatten(), torch.linspace(0, 1, 12))
    assert (shown[1] == 0.5).all()
    assert not in_unit_range(images)
    assert in_unit_range(shown)
    assert torch.isfinite(stretched(torch.full((1, 3, 2, 2), torch.nan))).all()
