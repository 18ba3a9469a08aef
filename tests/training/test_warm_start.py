"""Runs that start from what the previous one of the fit has found."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gfi_lightning import UsageError
from gfi_lightning.inversion.recipes import RECIPES
from gfi_lightning.inversion.results import Explanation
from gfi_lightning.inversion.start import Start
from gfi_lightning.testing import assert_harmless
from gfi_lightning.training.memory import Memory
from gfi_lightning.training.session import Session
from tests.training.modules import (
    WEIGHTS_ONLY,
    ToyModule,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
    scalar_steps,
)

DEFAULT = RECIPES["default"]
STANDING = replace(DEFAULT, inversion_steps=0, target_steps=0)
COARSE = "network.coarse"


@pytest.fixture
def runs(monkeypatch):
    """What each run has found on the way, and the feature maps that it was found with."""
    seen = []
    explain = Session._seen

    def watched(session, share, numbers, inversion, explanations, floors):
        seen.append((inversion, explanations))
        return explain(session, share, numbers, inversion, explanations, floors)

    monkeypatch.setattr(Session, "_seen", watched)
    return seen


class Still(ToyModule):
    """Learns nothing: all runs see the same weights."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_batch_start(self, batch, batch_idx):
        self.eval()  # nor do the statistics move


def fit(folder, callback, module=None, **options):
    torch.manual_seed(0)
    module = ToyModule() if module is None else module
    trainer = make_trainer(folder, callback, **options)
    trainer.fit(module, **loaders())
    return trainer, module


def weights_of(run):
    """ω of both stages; where there are further targets, of the first ones."""
    inversion, explanations = run
    return inversion.weights, explanations[0][1].weights


def signs_of(run):
    return run[1][0][1].signs


def test_the_second_run_starts_where_the_first_has_ended(tmp_path, runs):
    """Without steps ω stays what it is, on feature maps that have changed: a cold start would see their evidence."""
    fit(tmp_path, quick_callback(recipe=STANDING, layer=COARSE, targets=[0, 3], warm_start=True))
    fit(tmp_path, quick_callback(recipe=STANDING, layer=COARSE, targets=[0, 3]))
    warm, cold = runs[:3], runs[3:]
    assert all(map(torch.equal, weights_of(warm[0]), weights_of(cold[0])))  # the first run is cold
    for earlier, run in pairwise(warm):
        assert torch.equal(weights_of(run)[1], weights_of(earlier)[1])
        assert torch.equal(signs_of(run), signs_of(earlier))
        assert not torch.equal(run[1][0][1].heatmaps, earlier[1][0][1].heatmaps)
    assert not torch.allclose(weights_of(cold[1])[1], weights_of(cold[0])[1])


def test_steps_go_on_from_there(tmp_path, runs):
    """Run after run, with the weights of the model as they are."""
    recipe = replace(DEFAULT, inversion_steps=1, target_steps=1)
    fit(tmp_path, quick_callback(recipe=recipe, layer=COARSE, warm_start=True), Still())
    fit(tmp_path, quick_callback(recipe=recipe, layer=COARSE), Still())
    warm, cold = runs[:3], runs[3:]
    for run in cold[1:]:
        assert all(map(torch.equal, weights_of(run), weights_of(cold[0])))
    for earlier, run in pairwise(warm):
        assert all(not torch.equal(*pair) for pair in zip(weights_of(run), weights_of(earlier), strict=True))


def test_with_it_off_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Memory, "__init__", lambda *_: pytest.fail("something was kept"))
    fit(tmp_path, quick_callback())


def test_the_noise_floor_is_that_of_cold_runs(tmp_path):
    metrics = []
    for warm_start in (True, False):
        trainer, _ = fit(tmp_path, quick_callback(recipe="default", layer=COARSE, warm_start=warm_start))
        metrics.append(trainer.callback_metrics)
    warm, cold = metrics
    assert warm["gfi/drift_floor"] == cold["gfi/drift_floor"]
    assert warm["gfi/drift"] != cold["gfi/drift"]


def test_the_evidence_is_found_once(tmp_path, runs):
    """In the first run, which is as long as ever."""
    seen = {True: 0, False: 0}
    for warm_start in seen:

        def counted(module, images, warm_start=warm_start):
            seen[warm_start] += len(images)
            return module(images)

        runs.clear()
        options = {"recipe": "default", "layer": COARSE, "targets": 3, "forward": counted}
        fit(tmp_path, quick_callback(warm_start=warm_start, **options))
    samples = 3
    assert seen[False] - seen[True] == (len(runs) - 1) * samples * DEFAULT.evidence_passes > 0


def test_a_target_that_is_new_starts_cold(tmp_path, runs):
    """Each run explains another class, and the previous one's is no start for it."""

    def turns(logits, labels):
        return torch.full((len(logits),), len(runs) % 2)

    for warm_start in (True, False):
        runs.clear()
        fit(tmp_path, quick_callback(recipe=STANDING, layer=COARSE, targets=turns, warm_start=warm_start))
        if warm_start:
            warm = [weights_of(run)[1] for run in runs]
    cold = [weights_of(run)[1] for run in runs]
    assert len(warm) == 3
    assert all(map(torch.equal, warm, cold))


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 1},
        {"every_n_steps": 1, "recipe": "default", "layer": ["network.fine", COARSE]},
        {"targets": "contrast", "recipe": "default"},
        {"targets": [0, 1], "layers": ["network.fine"], "per_sample": True},
    ],
    ids=str,
)
def test_the_training_is_unharmed(tmp_path, options):
    assert_harmless(
        lambda callbacks: make_trainer(tmp_path, *callbacks, max_epochs=2, enable_checkpointing=True),
        FromLoaders,
        make_callbacks=lambda: [quick_callback(warm_start=True, num_samples=2, **options)],
    )


class FromLoaders(ToyModule):
    """With loaders of its own."""

    def train_dataloader(self):
        return loaders()["train_dataloaders"]

    def val_dataloader(self):
        return loaders()["val_dataloaders"]


def test_a_resumed_fit_starts_cold(tmp_path, runs):
    options = {"recipe": STANDING, "layer": COARSE, "targets": 3}
    trainer, _ = fit(tmp_path, quick_callback(warm_start=True, **options))
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    results = []
    for warm_start in (True, False):
        runs.clear()
        resumed = make_trainer(tmp_path, quick_callback(warm_start=warm_start, **options), max_epochs=3)
        torch.manual_seed(0)
        resumed.fit(ToyModule(), **loaders(), ckpt_path=tmp_path / "here.ckpt", **WEIGHTS_ONLY)
        assert len(runs) == 1
        results.append(weights_of(runs[0])[1])
    assert torch.equal(*results)


def test_its_maps_are_not_compared_with_warm_ones(tmp_path, caplog):
    """Else the start would be drawn as drift of the model."""
    caplog.set_level("INFO")
    options = {"recipe": STANDING, "layer": COARSE, "targets": 3, "warm_start": True}
    trainer, _ = fit(tmp_path, quick_callback(**options))
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    assert "makes its first maps from nothing" not in caplog.text
    resumed = make_trainer(tmp_path, quick_callback(**options), max_epochs=4)
    resumed.fit(ToyModule(), **loaders(), ckpt_path=tmp_path / "here.ckpt", **WEIGHTS_ONLY)
    assert caplog.text.count("makes its first maps from nothing") == 1
    assert image_steps(resumed) == [11, 15]
    assert scalar_steps(resumed, "gfi/drift") == [15]


def test_a_second_fit_starts_cold(tmp_path, runs):
    options = {"recipe": STANDING, "layer": COARSE, "targets": 3}
    callback = quick_callback(warm_start=True, **options)
    _, module = fit(tmp_path, callback)
    weights = copy.deepcopy(module.state_dict())
    results = []
    for one in (callback, quick_callback(**options)):
        runs.clear()
        module.load_state_dict(weights)
        make_trainer(tmp_path, one, max_epochs=1).fit(module, **loaders())
        results.append(weights_of(runs[0])[1])
    assert torch.equal(*results)


def explanation(targets, degenerate=None, against=None):
    """Of 2 images, with 3 channels whose ω tells which row it is."""
    count = targets.numel()
    weights = torch.arange(1.0, count + 1).reshape(*targets.shape, 1).repeat(*[1] * targets.ndim, 3)
    zeros = torch.zeros(targets.shape)
    return Explanation(
        heatmaps=torch.ones(*targets.shape, 4, 4),
        foreground=torch.ones(len(targets), 4, 4),
        targets=targets,
        score=zeros,
        preserved=zeros,
        removed=zeros,
        weights=weights,
        degenerate=zeros.bool() if degenerate is None else degenerate,
        against=against,
        signs=-torch.ones_like(weights, dtype=torch.int8),
    )


class Inverted:
    """As much of an inversion as is kept."""

    weights = torch.full((2, 3), 7.0)


def test_what_is_kept_is_found_by_sample_and_target():
    memory = Memory(skips_evidence=True)
    assert memory.of_images() is None
    assert memory.of_targets([0], torch.tensor([1]), None) is None
    more = explanation(torch.tensor([4])), [1]
    memory.keep(Inverted(), [([0, 1], explanation(torch.tensor([[3, 5], [3, 6]]))), (more[1], more[0])])
    assert torch.equal(memory.of_images().foreground, Inverted.weights)
    start = memory.of_targets([1, 0], torch.tensor([[4, 6], [5, 6]]), None)
    assert isinstance(start, Start)
    assert start.weights[..., 0].nan_to_num(-1).tolist() == [[1.0, 4.0], [2.0, -1.0]]
    assert start.signs[..., 0].tolist() == [[-1, -1], [-1, 1]]
    assert start.weights.shape == start.signs.shape == (2, 2, 3)
    assert memory.of_targets([1], torch.tensor([4]), torch.tensor([0])).weights.isnan().all()  # not contrasted then
    memory.forget()
    assert memory.of_images() is None


def test_only_the_previous_run_counts_and_only_where_there_was_evidence():
    memory = Memory(skips_evidence=False)
    memory.keep(Inverted(), [([0, 1], explanation(torch.tensor([3, 3])))])
    others = torch.tensor([1, 2])
    memory.keep(Inverted(), [([0, 1], explanation(torch.tensor([4, 5]), torch.tensor([False, True]), others))])
    start = memory.of_targets([0, 1], torch.tensor([4, 5]), others)
    assert start.weights[:, 0].nan_to_num(-1).tolist() == [1.0, -1.0]
    assert not start.skips_evidence
    assert memory.of_targets([0, 1], torch.tensor([3, 3]), None).weights.isnan().all()


def test_what_is_no_switch_is_refused():
    with pytest.raises(UsageError, match="warm_start='yes' must be True or False"):
        quick_callback(warm_start="yes")
