import torch
from bench.perturbation import MeaningfulPerturbation
from torch import nn

SIDE = 32


class WhereItIsBright(nn.Module):
    """Class 1 where one quarter is brighter than it is when blurred; nothing else matters."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, images):
        logit = self.scale * (images[:, :, 4:12, 20:28].square().mean((1, 2, 3)) - 0.5)
        return torch.stack([-logit, logit], 1)


def pictures():
    images = 0.3 * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    checks = 1.5 * ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 * 2 - 1).float()
    images[:, :, 4:12, 20:28] = checks[4:12, 20:28]
    return images


EXPLAIN = MeaningfulPerturbation(grid=8, steps=60, jitter=0, l1=1e-2)  # a mask of fewer pixels than usual
TARGETS = torch.ones(2, dtype=torch.long)


def test_the_mask_takes_away_what_the_score_hangs_on_and_nothing_else():
    model, images = WhereItIsBright(), pictures()
    assert model(images).softmax(1)[:, 1].min() > 0.99
    maps = EXPLAIN(model, images, TARGETS)
    assert maps.shape == (2, SIDE, SIDE)
    assert maps.min() >= 0
    assert maps.max() <= 1
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[4:12, 20:28] = True
    assert all(inside.flatten()[one.argmax()] for one in maps)
    assert (maps * inside).sum() / maps.sum() > 0.4
    from gfi_lightning.inversion.backgrounds import blur

    without = torch.lerp(images, blur(images), maps[:, None])
    assert model(without).softmax(1)[:, 1].max() < 0.1


def test_a_batch_gives_what_single_images_give_every_time():
    explain = MeaningfulPerturbation(grid=8, steps=10)
    model, images = WhereItIsBright().double(), pictures().double()
    together = explain(model, images, TARGETS)
    alone = torch.cat([explain(model, images[row : row + 1], TARGETS[:1]) for row in range(2)])
    assert torch.allclose(together, alone, atol=1e-9)
    assert model.scale.grad is None


def test_the_penalty_is_that_of_the_paper():
    explain = MeaningfulPerturbation(l1=0.1, total_variation=0.7, exponent=3.0)
    mask = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    for one, found in zip(mask[:, 0], explain.penalty(mask), strict=True):
        expected = 0.0
        for row in range(3):
            for column in range(4):
                expected += 0.1 * abs(1 - float(one[row, column]))
                if row < 2:
                    expected += 0.7 * abs(float(one[row + 1, column] - one[row, column])) ** 3
                if column < 3:
                    expected += 0.7 * abs(float(one[row, column + 1] - one[row, column])) ** 3
        assert abs(float(found) - expected) < 1e-12
    assert explain.penalty(torch.ones(1, 1, 5, 5)) == 0


def test_what_is_perturbed_goes_from_image_to_background():
    images, background = torch.full((1, 3, 8, 8), 4.0), torch.zeros(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    perturbed = MeaningfulPerturbation(grid=8).perturbed(images, background, mask)
    assert (perturbed[..., :4] == 4).all()
    assert (perturbed[..., 4:] == 0).all()
