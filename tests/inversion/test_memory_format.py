"""Large images are explained with the channels last, where convolutions are faster; nobody notices otherwise."""

import pytest
import torch
from torch import nn

from gfi_lightning import GuidedFeatureInversion
from tests.inversion.test_guided import SHORT
from tests.networks import ToyCNN, random_images


class Watched(ToyCNN):
    """Notes in what memory format the images come."""

    def __init__(self):
        super().__init__()
        self.channels_last = []

    def forward(self, images):
        self.channels_last.append(images.is_contiguous(memory_format=torch.channels_last))
        return super().forward(images)


class Viewing(Watched):
    """Calls ``view`` on what it takes to be contiguous, as many do, after a random number was drawn."""

    def forward(self, images):
        self.noise = torch.rand(())
        self.channels_last.append(images.is_contiguous(memory_format=torch.channels_last))
        maps = self.coarse(self.pool(self.fine(images)))
        return self.head[3](maps.view(*maps.shape[:2], -1).view(len(maps), -1).unflatten(1, (6, -1)).mean(2))


@pytest.mark.parametrize(
    ("size", "dtype", "expected"), [(128, torch.float32, True), (64, torch.float32, False), (128, torch.float64, False)]
)
def test_large_images_of_float32(size, dtype, expected):
    model = Watched().to(dtype)
    explanation = GuidedFeatureInversion(model, recipe=SHORT).explain(random_images(3, size, dtype=dtype))
    assert set(model.channels_last) == {expected}
    assert explanation.images.is_contiguous()


def test_maps_are_the_same_but_for_rounding():
    images = random_images(3, 128, dtype=torch.float32)
    last = GuidedFeatureInversion(ToyCNN(), recipe=SHORT).explain(images)
    exact = GuidedFeatureInversion(ToyCNN().double(), recipe=SHORT).explain(images.double())
    assert not last.degenerate.any()
    torch.testing.assert_close(last.heatmaps, exact.heatmaps, rtol=0, atol=1e-4)


def test_a_model_that_refuses_is_asked_again():
    images = random_images(3, 128, dtype=torch.float32)
    model, state = Viewing(), torch.get_rng_state()
    gfi = GuidedFeatureInversion(model, recipe=SHORT)
    explanation = gfi.explain(images)
    assert model.channels_last.count(True) == 1  # and never again
    assert torch.equal(torch.get_rng_state(), state)
    model.channels_last.clear()
    again = gfi.explain(images)
    assert not any(model.channels_last)
    assert torch.equal(again.heatmaps, explanation.heatmaps)
    assert torch.equal(again.score, explanation.score)


def test_an_error_of_another_kind_is_the_models_own():
    class Broken(ToyCNN):
        def forward(self, images):
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        GuidedFeatureInversion(Broken(), recipe=SHORT).explain(random_images(1, 128, dtype=torch.float32))


def test_what_a_listener_raises_is_no_reason_to_try_again():
    told = []

    def stop():
        told.append(1)
        raise RuntimeError("cancelled by the user")

    with pytest.raises(RuntimeError, match="cancelled by the user"):
        GuidedFeatureInversion(ToyCNN(), recipe=SHORT, on_pass=stop).explain(random_images(1, 128).float())
    assert len(told) == 1


def test_a_score_of_the_users_gets_the_output_in_one_piece():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval()
    gfi = GuidedFeatureInversion(model, "1", recipe=SHORT, score=lambda output, _: output.view(len(output), -1).mean(1))
    assert gfi.explain(random_images(2, 128).float(), 1).heatmaps.shape == (2, 128, 128)


def test_a_model_that_works_in_place_leaves_the_images():
    class InPlace(ToyCNN):
        def forward(self, images):
            return super().forward(images.sub_(0.5))

    for size in (32, 128):
        images = random_images(2, size).float()
        assert torch.equal(GuidedFeatureInversion(InPlace(), "coarse", recipe=SHORT).explain(images).images, images)


def test_a_model_with_channels_last_keeps_them():
    """Also for small images, where the user's own choice counts."""
    model = Watched()
    model.fine.register_forward_hook(
        lambda module, args, output: model.channels_last.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    images = random_images(4, 64, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    GuidedFeatureInversion(model.to(memory_format=torch.channels_last), recipe=SHORT).explain(images)
    assert all(model.channels_last)


def test_the_random_numbers_of_a_second_try_are_those_of_the_first():
    drawn = []

    class Drawing(Viewing):
        def forward(self, images):
            drawn.append(torch.rand(()).item())
            return super().forward(images)

    model = Drawing()
    GuidedFeatureInversion(model, recipe=SHORT).explain(random_images(1, 128, dtype=torch.float32))
    assert drawn[0] == drawn[1]
    assert len({*drawn}) == len(drawn) - 1
