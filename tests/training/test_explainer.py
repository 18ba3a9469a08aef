"""Another method's maps are filmed as ours are, and what it does to the model in the meantime is gone afterwards."""

import functools
import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from gfi_lightning import GFICallback, History, UsageError, replay
from gfi_lightning.inversion.backgrounds import blur
from gfi_lightning.recording.pictures import draw_sample
from gfi_lightning.recording.record import SampleRecord, TargetRecord
from gfi_lightning.recording.report import write_report
from gfi_lightning.testing import assert_harmless
from gfi_lightning.training.foreign import Foreign, as_heatmaps
from tests.browser import chromium
from tests.recording.report_page import Page
from tests.training.modules import WEIGHTS_ONLY, Pictures, ToyModule, image_steps, loaders, make_trainer, read_events
from tests.training.peculiar import Data
from tests.training.test_distributed import Sharded, fit


def filmed(explainer, **options):
    """A callback that is quick and hides nothing."""
    return GFICallback(**({"explainer": explainer, "num_samples": 3, "on_error": "raise"} | options))


def gradient_by_hand(model, images, targets):
    """As plain as can be: where the image matters to the logit."""
    (gradients,) = torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)
    return gradients.abs().sum(1)


def fitted(folder, callback, module=None, **options):
    L.seed_everything(0, verbose=False)
    trainer = make_trainer(folder, callback, max_epochs=1, **options)
    trainer.fit(module or ToyModule(), **loaders())
    return trainer


# --- What it is called with, and what becomes of its maps


def test_what_it_is_called_with(tmp_path):
    calls = []

    def seen(model, images, targets):
        parts = list(model.modules())
        calls.append((model, images.detach().clone(), targets.clone()))
        assert images.requires_grad
        assert images.is_leaf
        assert torch.is_grad_enabled()
        assert not any(part.training for part in parts)
        assert not any(one.requires_grad or one.grad is not None for one in model.parameters())
        assert images.shape == (3, 3, 16, 16)
        assert (targets.shape, targets.dtype) == ((3,), torch.int64)
        return images[:, 0]

    module = ToyModule()
    fitted(tmp_path, filmed(seen, targets=2, samples=[0, 4, 8], every_n_steps=2), module)
    assert len(calls) == 4  # untrained, once more for the noise floor, after two steps, after four
    assert all(model is module and (targets == 2).all() for model, _, targets in calls)
    chosen = [Pictures()[index][0] for index in (0, 4, 8)]
    assert torch.equal(calls[0][1], torch.stack(chosen))
    assert 0 < (calls[0][1] - calls[1][1]).abs().max() < 1e-5


def test_kept_and_removed_are_measured_as_for_our_own_maps(tmp_path):
    def left_half(model, images, targets):
        maps = torch.zeros(len(images), 4, 4)
        maps[:, :, :2] = torch.tensor([3.0, -5.0])
        return maps

    module = ToyModule()
    untrained = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = fitted(tmp_path, filmed(left_half, samples=[0, 4, 8]), module)
    history = History.load(trainer.log_dir)
    module.load_state_dict(untrained)
    images = torch.stack([Pictures()[index][0] for index in (0, 4, 8)])
    column = F.interpolate(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), 16, mode="linear")[0]
    mask, background = column / column.max(), blur(images)
    with torch.no_grad():
        network = module.network.eval()
        expected = [
            network(one).softmax(1).gather(1, torch.from_numpy(history.labels)[:, None])[:, 0]
            for one in (
                images,
                mask * images + (1 - mask) * background,
                (1 - mask) * images + mask * background,
            )
        ]
    for sample in range(3):
        for name, values in zip(("score", "preserved", "removed"), expected, strict=True):
            assert history.scores(sample, name)[0, 0] == pytest.approx(float(values[sample]), abs=1e-5)
        np.testing.assert_allclose(history.heatmaps(sample)[0, 0].max(1), 1, atol=0.2)
        assert history.heatmaps(sample).shape[-2:] == (4, 4)
        assert history.foregrounds(sample).shape == (len(history), 0, 0)


IMAGES = torch.rand(2, 3, 8, 8)
RAMP = np.arange(32, dtype=np.float64).reshape(2, 4, 4) - 8
FORMS = {
    "array": RAMP,
    "with a channel": RAMP[:, None],
    "backwards in memory": np.ascontiguousarray(RAMP[:, ::-1])[:, ::-1],
    "big-endian": RAMP.astype(">f4"),
    "whole numbers": RAMP.astype(np.int64),
    "tensor": torch.from_numpy(RAMP),
    "half precision, with a graph": torch.from_numpy(RAMP).half().requires_grad_() * 1,
    "huge": RAMP * 1e300,
    "tiny": RAMP * 1e-300,
}


@pytest.mark.parametrize("form", FORMS)
def test_maps_in_any_form_are_the_same(form):
    heatmaps, grid = as_heatmaps(FORMS[form], IMAGES, "method")
    assert grid == (4, 4)
    assert (heatmaps.dtype, heatmaps.requires_grad) == (torch.float32, False)
    positive = torch.from_numpy(RAMP).clamp(min=0).float()[:, None]
    upsampled = F.interpolate(positive, 8, mode="bilinear")[:, 0]
    torch.testing.assert_close(heatmaps, upsampled / upsampled.amax((1, 2), keepdim=True), atol=1e-6, rtol=0)


def test_what_is_no_evidence_is_an_empty_map():
    maps = torch.rand(2, 4, 4)
    for nothing in (torch.zeros(4, 4), -torch.rand(4, 4), maps[0] * torch.nan, torch.full((4, 4), torch.inf)):
        heatmaps, _ = as_heatmaps(torch.stack([nothing, maps[1]]), IMAGES, "method")
        assert not heatmaps[0].any()
        assert heatmaps[1].max() == 1


def test_finer_maps_than_the_image_are_averaged():
    checkers = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(2, 64, 64)
    heatmaps, grid = as_heatmaps(checkers, IMAGES, "method")
    assert grid == (8, 8)
    assert heatmaps.min() > 0.9


class NeedsAutocast(ToyModule):
    def forward(self, images):
        return super().forward(images.bfloat16())


@pytest.mark.parametrize("explainer", [None, gradient_by_hand], ids=["ours", "another"])
def test_a_model_that_fails_without_autocast(tmp_path, explainer):
    callback = filmed(explainer)
    trainer = fitted(tmp_path, callback, NeedsAutocast(), precision="bf16-mixed")
    history = History.load(trainer.log_dir)
    assert all((history.heatmaps(sample)[:, 0].max((1, 2)) > 0).all() for sample in range(3))


def test_an_empty_map_is_shown_as_one(tmp_path):
    trainer = fitted(tmp_path, filmed(lambda model, images, targets: images[:, 0] * torch.nan))
    history = History.load(trainer.log_dir)
    assert not history.heatmaps(0)[:, 0].any()
    assert np.isfinite(history.scores(0)[:, 0]).all()
    assert image_steps(trainer) == [0, 3]


def test_label_and_prediction_several_targets_and_chunks(tmp_path):
    sizes = []

    def counted(model, images, targets):
        sizes.append(len(images))
        return gradient_by_hand(model, images, targets)

    label = History.load(fitted(tmp_path / "label", filmed(counted, chunk_size=2)).log_dir)
    assert set(sizes) == {1, 2}
    for sample in range(3):
        targets = label.targets(sample)
        assert (targets[:, 0] == label.labels[sample]).all()
        wrong = label.predicted[:, sample] != label.labels[sample]
        assert (targets[wrong, 1] == label.predicted[wrong, sample]).all()
    several = History.load(fitted(tmp_path / "several", filmed(counted, targets=[0, 3])).log_dir)
    np.testing.assert_array_equal(several.targets(1), [[0, 3]] * 2)
    assert np.abs(several.heatmaps(1)[:, 0] - several.heatmaps(1)[:, 1]).max() > 0.1
    # The label's map does not depend on how it came about.
    alone = History.load(fitted(tmp_path / "alone", filmed(gradient_by_hand, targets=int(label.labels[1]))).log_dir)
    np.testing.assert_allclose(alone.heatmaps(1)[0, 0], label.heatmaps(1)[0, 0], atol=2e-3)


def test_curves_regions_and_the_alarm(tmp_path):
    def corner(model, images, targets):
        maps = torch.zeros(len(images), 8, 8)
        maps[:, :2, :2] = 1 + model(images).sum()
        return maps.abs()

    callback = filmed(corner, regions={"corner": [(0, 0, 8, 8)] * 20}, alarm={"corner": 0.9}, on_error="warn")
    with pytest.warns(UserWarning, match="energy in the region 'corner'"):
        trainer = fitted(tmp_path, callback)
    history = History.load(trainer.log_dir)
    assert (history.curve("energy/corner") > 0.9).all()
    assert history.curve("drift")[-1].max() < 1e-6
    tags = read_events(trainer).Tags()
    assert {"gfi/sample_0", "gfi/overview", "gfi/film_0", "gfi/animation", "gfi/curves"} <= set(tags["images"])
    assert {"gfi/preserved", "gfi/removed", "gfi/drift_floor", "gfi/energy/corner"} <= set(tags["scalars"])


def test_what_it_draws_at_random_is_the_same_each_time(tmp_path):
    draws = []

    def noisy(model, images, targets):
        draws.append((float(torch.rand(1)), float(np.random.rand())))
        return torch.rand(len(images), 4, 4)

    trainer = fitted(tmp_path, filmed(noisy, targets=1, every_n_steps=2))
    assert len(draws) == 4
    assert len(set(draws)) == 1
    history = History.load(trainer.log_dir)
    assert not history.curve("drift_floor").any()
    assert not np.nan_to_num(history.curve("drift")).any()


# --- Pictures


def grad_cam(model, images, targets):
    return images[:, 0]


class Method:
    def __call__(self, model, images, targets):
        return images[:, 0]


NAMES = {
    "grad_cam": (grad_cam, "grad_cam"),
    "inner one of a partial": (functools.partial(functools.partial(grad_cam)), "grad_cam"),
    "class": (Method(), "Method"),
    "method": (Method().__call__, "__call__"),
    "lambda of a named callback": (lambda model, images, targets: images, "late"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_method(name):
    function, expected = NAMES[name]
    assert Foreign.of(function, "late").name == expected


def test_a_lambda_of_a_nameless_callback():
    assert Foreign.of(lambda model, images, targets: images, None).name == "explainer"


def sample_of(method):
    target = TargetRecord(1, torch.rand(32, 32), 0.5, 0.4, 0.3, False)
    empty = torch.zeros(0, 0) if method else torch.rand(32, 32)
    return SampleRecord(torch.rand(3, 32, 32), 1, 1, 0.5, empty, [target], method=method)


def test_a_picture_without_a_stage_1_has_no_panel_for_it():
    ours, others, of_long_name = (draw_sample(sample_of(one), 0, 0) for one in ("", "grad_cam", "grad_cam" * 9))
    assert others.shape[1] == ours.shape[1]
    assert others.shape[0] < 0.6 * ours.shape[0]
    assert of_long_name.shape[0] > others.shape[0]  # it has a line of its own


# --- Promise 1


def captum_grad_cam(model, images, targets):
    from captum.attr import LayerGradCam

    return LayerGradCam(model, model.network.coarse).attribute(images, targets)


def captum_integrated_gradients(model, images, targets):
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(images, target=targets, n_steps=4).sum(1)


def captum_saliency(model, images, targets):
    from captum.attr import Saliency

    return Saliency(model).attribute(images, targets).amax(1)


def captum_guided_backprop(model, images, targets):
    """Which puts hooks on all parts of the model while it is at work."""
    from captum.attr import GuidedBackprop

    return GuidedBackprop(model).attribute(images, targets).sum(1)


def pytorch_grad_cam(model, images, targets):
    """Without its context manager: it leaves its hooks on the model."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = GradCAM(model, [model.network.coarse])
    return cam(images, [ClassifierOutputTarget(int(target)) for target in targets])


LIBRARIES = [
    *(
        pytest.param(one, marks=pytest.mark.captum)
        for one in (captum_grad_cam, captum_integrated_gradients, captum_saliency, captum_guided_backprop)
    ),
    pytest.param(pytorch_grad_cam, marks=pytest.mark.grad_cam),
]


class AccumulatesByHand(ToyModule):
    """Has gradients lying about at any time, of some of which the optimiser makes use only two batches later."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.network.coarse.eval().requires_grad_(False)  # a frozen part

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def configure_optimizers(self):
        return SGD(self.parameters(), 0.1)


def check(folder, explainer, module=ToyModule, callback=filmed, **options):
    trainer = functools.partial(make_trainer, folder, max_epochs=1, **options)
    assert_harmless(
        lambda callbacks: trainer(*callbacks),
        module,
        Data,
        make_callbacks=lambda: [callback(explainer, every_n_steps=1, num_samples=2)],
    )


@pytest.mark.parametrize("explainer", LIBRARIES)
def test_other_libraries_leave_no_trace(tmp_path, explainer):
    check(tmp_path, explainer, AccumulatesByHand)


@pytest.mark.grad_cam
def test_nor_where_lightning_accumulates_gradients(tmp_path):
    check(tmp_path, pytorch_grad_cam, accumulate_grad_batches=2)


@pytest.mark.captum
def test_grad_cam_is_what_it_is_by_definition(tmp_path):
    def by_hand(model, images, targets):
        network = model.network
        maps = network.coarse(network.pool(network.fine(images)))
        (gradients,) = torch.autograd.grad(network.head(maps).gather(1, targets[:, None]).sum(), maps)
        return (gradients.mean((2, 3), keepdim=True) * maps).sum(1)

    methods = {"library": captum_grad_cam, "hand": by_hand}
    found = [History.load(fitted(tmp_path / name, filmed(one)).log_dir) for name, one in methods.items()]
    for sample in range(3):
        np.testing.assert_allclose(found[0].heatmaps(sample), found[1].heatmaps(sample), atol=2e-3)
        assert found[0].heatmaps(sample).any()


class Careless:
    """Leaves behind whatever one can; and fails after that, when told so."""

    def __init__(self, fails=False):
        self.fails, self.calls, self.heard = fails, 0, 0

    def __call__(self, model, images, targets):
        self.calls += 1
        model.requires_grad_(True)
        model.zero_grad(set_to_none=False)
        model.train()
        for part in model.modules():
            part.register_forward_hook(self.hear)
            part.register_forward_pre_hook(lambda *_: None)
        model.network.head[-1].register_full_backward_hook(self.hear)  # others work in place, which these forbid
        model(images).square().sum().backward()
        assert any(one.grad is not None and one.grad.any() for one in model.parameters())
        model.scratch = [images]
        model.more = nn.Parameter(torch.ones(1))
        nn.utils.parametrizations.weight_norm(model.network.coarse[0])
        model.network.head[-1].bias = nn.Parameter(torch.zeros(5))
        model.network.fine[0].weight.data.add_(1)
        model.network.fine = nn.Sequential(*model.network.fine)
        torch.manual_seed(7)
        torch.set_grad_enabled(False)
        self.heard = 0
        images.data.zero_()
        targets.zero_()
        if self.fails and model.trainer.global_step > 0:
            raise RuntimeError("the cat sat on the keyboard")
        return torch.ones(len(images), 2, 2)

    def hear(self, *_):
        self.heard += 1


@pytest.mark.parametrize("module", [ToyModule, AccumulatesByHand])
def test_a_careless_method_leaves_no_trace(tmp_path, module):
    careless = Careless()
    check(tmp_path, careless, module, accumulate_grad_batches=1 if module is AccumulatesByHand else 2)
    assert careless.calls > 2
    assert careless.heard == 0  # nor in the passes by which its maps are judged


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_method_that_fails_becomes_one_warning(tmp_path):
    def callback(explainer, **options):
        return filmed(explainer, on_error="warn", **options)

    with pytest.warns(UserWarning, match="GFICallback could not explain") as caught:
        check(tmp_path, Careless(fails=True), AccumulatesByHand, callback)
    (message,) = [str(one.message) for one in caught if "GFICallback" in str(one.message)]
    assert re.search(
        r"could not explain by explainer=Careless, and the run goes on: RuntimeError: the cat sat on the keyboard\n"
        r"It was called with the LightningModule, images, Tensor\(2, 3, 16, 16\) of float32, which require a gradient, "
        r"and targets, Tensor\(2,\) of int64; the module's parameters require none\.",
        message,
    )


# --- Misuse

MISTAKES = {
    "no function": ({"explainer": "grad_cam"}, r"explainer='grad_cam' cannot be called for maps: give a function"),
    "a class": ({"explainer": Method}, r"explainer=<class .*Method'> cannot be called for maps: give a function \(mod"),
    "two arguments": (
        {"explainer": lambda model, images: images},
        r"explainer=<lambda>\(model, images\) does not take three arguments: give a function \(model, images, targ",
    ),
    **{
        argument: (
            {"explainer": grad_cam, argument: value},
            f"{argument}={re.escape(repr(value))} was given beside explainer=grad_cam, whose maps do not come from",
        )
        for argument, value in {
            "layer": "network.fine",
            "inversion_layer": "network.fine",
            "layers": ["network.fine", "network.coarse"],
            "recipe": "paper",
            "keep_weights": True,
            "warm_start": True,
        }.items()
    },
    "contrast": (
        {"explainer": grad_cam, "targets": "contrast"},
        r"targets='contrast' was given beside explainer=grad_cam, .*: give other targets, or leave out explainer=",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_at_once(name):
    arguments, message = MISTAKES[name]
    with pytest.raises(UsageError, match=message):
        GFICallback(**arguments)


WRONG = {
    "channels": (
        lambda images: images,
        r"returned Tensor\(3, 3, 16, 16\) of float32 for Tensor\(3, 3, 16, 16\) of float32; expected is one map for "
        r"each image, \(3, h, w\) or \(3, 1, h, w\), a tensor or an array of real numbers\. Where there is a map for "
        r"each channel, return their sum: maps\.sum\(1\)\.",
    ),
    "one map": (lambda images: images[0, 0], r"returned Tensor\(16, 16\) of float32 for"),
    "fewer maps": (lambda images: images[:2, 0], r"returned Tensor\(2, 16, 16\) of float32 for"),
    "nothing": (lambda images: None, "returned NoneType for"),
    "empty": (lambda images: images[:, 0, :0], r"returned Tensor\(3, 0, 16\) of float32 for"),
    "a tuple": (lambda images: (images[:, 0],), r"returned tuple\(Tensor\(3, 16, 16\) of float32\) for"),
    "complex": (lambda images: images[:, 0] * 1j, r"returned Tensor\(3, 16, 16\) of complex64 for"),
    "text": (lambda images: np.full((3, 4, 4), "a"), r"returned array\(3, 4, 4\) of <U1 for"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_are_no_maps_ends_the_fit_before_it_begins(tmp_path, name):
    returned, message = WRONG[name]
    trainer = make_trainer(tmp_path, filmed(lambda model, images, targets: returned(images), on_error="warn"))
    with pytest.raises(UsageError, match=f"explainer=explainer {message}"):
        trainer.fit(ToyModule(), **loaders())
    assert trainer.global_step == 0


# --- After the training, and on several ranks


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The log directory of a run with both methods, and its checkpoints."""
    folder = tmp_path_factory.mktemp("both")
    L.seed_everything(0, verbose=False)
    callbacks = [GFICallback(num_samples=3), filmed(gradient_by_hand, name="gradient")]
    saved = L.pytorch.callbacks.ModelCheckpoint(folder / "checkpoints", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(folder, *callbacks, saved, max_epochs=2, enable_checkpointing=True)
    trainer.fit(ToyModule(), **loaders())
    return Path(trainer.log_dir), folder / "checkpoints"


def test_both_side_by_side(both):
    log_dir, _ = both
    ours, others = History.load(log_dir), History.load(log_dir, "gradient")
    assert ours.steps == others.steps == [0, 3, 7]
    np.testing.assert_array_equal(ours.images, others.images)
    assert ours.foregrounds(0).any()
    assert (ours.heatmaps(0)[:, 0] != others.heatmaps(0)[:, 0]).any()


def test_a_replay_shows_what_was_shown(both, tmp_path):
    log_dir, checkpoints = both
    callback = filmed(gradient_by_hand)
    history = replay(checkpoints, ToyModule(), None, loaders()["val_dataloaders"], callback=callback, log_dir=tmp_path)
    live = History.load(log_dir, "gradient")
    assert history.steps == live.steps[1:]
    for sample in range(3):
        np.testing.assert_allclose(history.heatmaps(sample)[:, 0], live.heatmaps(sample)[1:, 0], atol=2e-3)


def test_a_resume_goes_on_also_with_the_other_method(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    for epochs, callback in ((1, GFICallback(num_samples=3)), (2, filmed(gradient_by_hand)), (3, filmed(grad_cam))):
        trainer = make_trainer(tmp_path, callback, max_epochs=epochs)
        path = checkpoint if checkpoint.exists() else None
        trainer.fit(ToyModule(), **loaders(), ckpt_path=path, **WEIGHTS_ONLY)
        trainer.save_checkpoint(checkpoint)
        history = History.load(trainer.log_dir)
        assert history.steps == [0, 3, 7, 11][: epochs + 1]
        history.heatmaps(0)
        assert (history.foregrounds(0).size > 0) == (epochs == 1)


@pytest.mark.browser
def test_the_report_offers_any_class_only_where_there_is_a_map_of_it(both, tmp_path):
    log_dir, _ = both
    ours, others = History.load(log_dir), History.load(log_dir, "gradient")
    write_report({"gradient": others}, tmp_path / "one.html")
    write_report({"ours": ours, "gradient": others}, tmp_path / "two.html")
    with chromium() as browser:
        page = Page(browser, tmp_path / "one.html")
        (button,) = [one for one in page.all("#target button") if one.text == "Any class"]
        assert not button.is_enabled()
        assert button.get_attribute("title") == "The method of this history has no map of any class."
        assert page.complaints() == []
        page = Page(browser, tmp_path / "two.html")
        (button,) = [one for one in page.all("#target button") if one.text == "Any class"]
        button.click()
        page.until(lambda: "The method of this run has no map of any class." in page.text("body"))
        assert page.complaints() == []


def explained(folder, ranks=2):
    fit(folder, ToyModule(), filmed(gradient_by_hand, num_samples=5), ranks=ranks)


def test_two_ranks_show_what_one_shows(tmp_path, two_ranks):
    two_ranks(explained, tmp_path / "two")
    explained(tmp_path / "one", 1)
    two, one = (History.load(tmp_path / name / "version_0") for name in ("two", "one"))
    for sample in range(5):  # at step 0, before the batches differ
        np.testing.assert_allclose(two.heatmaps(sample)[0], one.heatmaps(sample)[0], atol=2e-3)


def refused_where_the_model_is_spread(folder):
    import warnings

    from lightning.pytorch.strategies import ModelParallelStrategy

    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    callback = filmed(gradient_by_hand, on_error="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(folder, Sharded(), callback, strategy=strategy)
    return trainer.global_step, [str(one.message) for one in caught if "GFICallback" in str(one.message)]


@pytest.mark.fsdp_on_cpu
def test_a_model_that_is_spread_over_the_ranks_is_left_alone(tmp_path, two_ranks):
    (steps, said), (other_steps, other_said) = two_ranks(refused_where_the_model_is_spread, tmp_path)
    assert steps == other_steps > 0
    assert len(said) == 1
    assert said[0].startswith("GFICallback(explainer=...) does not explain under ModelParallelStrategy: each pass")
    assert other_said == []
