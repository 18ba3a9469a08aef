"""A pass of stage 2 is no larger than a training step with the same images would be."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from gfi_lightning import GuidedFeatureInversion
from gfi_lightning.inversion import capacity
from tests.inversion.test_guided import SHORT
from tests.networks import ToyCNN, random_images


def sizes_of_passes(model: nn.Module, images: torch.Tensor, **options) -> list[int]:
    """Of stage 2."""
    gfi, sizes = GuidedFeatureInversion(model, recipe=SHORT, **options), []
    inversion = gfi.invert(images)
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    gfi.refine(inversion, 0)
    handle.remove()
    assert len(sizes) == gfi.passes(images)[1]
    return sizes


def test_where_activations_weigh_more_than_weights_kept_and_removed_images_take_turns():
    assert sizes_of_passes(mobilenet_v2().eval(), random_images(1, 224).float()) == [1] * (4 + 2 * 4)


def test_where_weights_weigh_more_they_go_together():
    assert sizes_of_passes(resnet18().eval(), random_images(1, 64).float()) == [4] + [2] * 4


def test_what_a_pass_keeps_is_measured():
    """The image, 3 channels, by the first layer; and by the second what it returns, 5 channels."""
    model = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.Sigmoid(), nn.Conv2d(5, 2, 1), nn.Flatten(2))
    model.append(nn.AdaptiveAvgPool1d(1)).append(nn.Flatten())
    gfi = GuidedFeatureInversion(model.eval(), "2", recipe=SHORT)
    for size in (32, 64):  # each size is measured by itself
        images = random_images(3, size).float()
        assert gfi._network.bytes_per_image(images) is None
        gfi.explain(images, 0)
        assert gfi._network.bytes_per_image(images) == (3 + 5) * size * size * 4


def test_one_after_the_other_is_both_together(monkeypatch):
    images = random_images(4)
    together = GuidedFeatureInversion(ToyCNN().double(), recipe=SHORT).explain(images, 1)
    monkeypatch.setattr(capacity, "_LITTLE", 0.0)
    model = ToyCNN().double()
    sizes = sizes_of_passes(model, images)
    assert sizes == [4] * (4 + 2 * 4)
    in_turns = GuidedFeatureInversion(model, recipe=SHORT).explain(images, 1)
    for name in ("heatmaps", "weights", "preserved", "removed"):
        torch.testing.assert_close(getattr(in_turns, name), getattr(together, name), rtol=0, atol=1e-8)


def test_a_model_may_work_in_place():
    class InPlace(ToyCNN):
        def forward(self, images):
            return super().forward(images.sub_(0.1))

    shifted = GuidedFeatureInversion(InPlace().double(), "coarse", recipe=SHORT).explain(random_images(2), 0)
    assert not shifted.degenerate.any()


def test_a_forward_that_cannot_be_measured_is_explained_all_the_same():
    class Derived(ToyCNN):
        def forward(self, images):
            scale = torch.func.grad(lambda one: (one**2).sum())(torch.ones(()))
            return super().forward(images) * scale / 2

    images = random_images(3)
    derived = GuidedFeatureInversion(Derived().double(), "coarse", recipe=SHORT).explain(images, 1)
    plain = GuidedFeatureInversion(ToyCNN().double(), "coarse", recipe=SHORT).explain(images, 1)
    torch.testing.assert_close(derived.heatmaps, plain.heatmaps)


def test_measuring_keeps_nothing_alive():
    seen = []

    class WithSide(ToyCNN):
        def forward(self, images):
            side = images.sigmoid().sigmoid()  # no gradient comes by here
            seen.append(weakref.ref(side))
            return super().forward(images)

    GuidedFeatureInversion(WithSide().double(), "coarse", recipe=SHORT).explain(random_images(2), 1)
    gc.collect()
    assert not any(one() is not None for one in seen)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [8, 32])
def test_on_a_gpu_an_explanation_takes_less_memory_than_a_training_step(batch):
    model, images = mobilenet_v2().cuda(), torch.rand(batch, 3, 224, 224, device="cuda")

    def peak_of(work):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before

    gfi = GuidedFeatureInversion(model)
    gfi.explain(images[:1], 0)  # finds the layer
    of_explanation = peak_of(lambda: gfi.explain(images, 0))
    assert of_explanation < peak_of(lambda: model(images).sum().backward())


@pytest.mark.gpu
def test_on_a_gpu_chunks_fit_in_half_of_what_is_free():
    model, images = mobilenet_v2().eval().cuda(), random_images(40, 224).float().cuda()
    gfi = GuidedFeatureInversion(model, recipe=SHORT)
    gfi.explain(images[:2], 0)
    free = torch.cuda.mem_get_info()[0]
    assert gfi.capacity.chunk_size_for(images) * gfi._network.bytes_per_image(images) <= free
    assert 1 <= gfi.capacity.chunk_size_for(images) <= 32


GLIBC = pytest.mark.skipif(
    not capacity._may_ask_for_memory_in_advance(), reason="memory is not asked for in advance on this system"
)


def as_if_it_kept_much(gfi):
    gfi.capacity.learn({"kept_bytes": dict.fromkeys(gfi.capacity.learned["kept_bytes"], 2**25)})


@GLIBC
def test_the_heap_is_held_by_one_block_and_not_touched(monkeypatch):
    resource = pytest.importorskip("resource")
    gfi, images = GuidedFeatureInversion(ToyCNN(), recipe=SHORT), random_images(8).float()
    gfi.explain(images, 0)
    as_if_it_kept_much(gfi)
    storage, asked = torch.UntypedStorage, []

    def noted(size):
        block = storage(size)
        asked.append(weakref.ref(block))
        return block

    monkeypatch.setattr(torch, "UntypedStorage", noted)
    with gfi.capacity.heap_held(images):  # whatever the first time takes
        pass
    del asked[:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with gfi.capacity.heap_held(images):
        touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert len(asked) * 2**22 > 2 * 7 * 2**25  # what a pass with nearly all of them keeps, and as much again
        assert [one() is not None for one in asked] == [False] * (len(asked) - 1) + [True]
    assert asked[-1]() is None
    assert touched < 2000  # pages of 4 KB, of 110,000


@GLIBC
def test_a_system_that_grants_no_memory_in_advance_is_left_alone(monkeypatch):
    gfi, images = GuidedFeatureInversion(ToyCNN().double(), recipe=SHORT), random_images(8)
    expected = gfi.explain(images, 0)
    as_if_it_kept_much(gfi)
    asked = []

    def refuse(size):
        asked.append(size)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "UntypedStorage", refuse)
    torch.testing.assert_close(gfi.explain(images, 0).heatmaps, expected.heatmaps)  # versions come in other parts
    assert asked


@GLIBC
def test_for_small_passes_no_memory_is_asked_in_advance(monkeypatch):
    gfi, images = GuidedFeatureInversion(ToyCNN(), recipe=SHORT), random_images(2).float()
    gfi.explain(images, 0)
    monkeypatch.setattr(torch, "UntypedStorage", lambda size: pytest.fail(f"{size} bytes"))
    gfi.explain(images, 0)
