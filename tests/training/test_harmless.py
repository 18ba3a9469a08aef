"""A run with the callback is the run without it."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, random_split

from gfi_lightning import GFICallback
from tests.training.modules import (
    Pictures,
    ToyModule,
    TwoOptimizers,
    image_steps,
    loaders,
    make_trainer,
    quick_callback,
)


def fit(folder, *callbacks, **options):
    """A whole run with everything random in it; the trained module, and the next random numbers."""
    L.seed_everything(1, verbose=False)
    module = ToyModule()
    module.network.coarse.eval().requires_grad_(False)  # a frozen part
    trainer = make_trainer(folder, *callbacks, max_epochs=3, **options)
    augmented = Pictures(18, augment=True, seed=1), Pictures(augment=True)
    trainer.fit(module, **loaders(*augmented))
    draws = (random.random(), float(np.random.rand()), float(torch.rand(1)))
    return trainer, module, draws


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"every_n_steps": 1},
        {"every_n_epochs": 2, "targets": [0, 1], "background": "noise"},
        {"targets": "contrast", "layers": ["network.fine", "network.coarse"]},
    ],
    ids=str,
)
def test_weights_metrics_and_random_numbers_are_bit_for_bit_the_same(tmp_path, schedule):
    trainer, module, draws = fit(tmp_path / "with", quick_callback(**schedule))
    plain_trainer, plain, plain_draws = fit(tmp_path / "without")
    assert len(image_steps(trainer)) > 2, "nothing was explained: the comparison would prove nothing"
    for (name, value), (_, expected) in zip(module.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name
    assert draws == plain_draws
    assert trainer.logged_metrics.keys() == plain_trainer.logged_metrics.keys()
    assert all(torch.equal(value, plain_trainer.logged_metrics[name]) for name, value in trainer.logged_metrics.items())
    states = [one.optimizers[0].state_dict()["state"] for one in (trainer, plain_trainer)]
    assert all(torch.equal(states[0][p][k], states[1][p][k]) for p in states[0] for k in states[0][p])


def state_of(trainer, module):
    return {
        "modes": [part.training for part in module.modules()],
        "flags": [parameter.requires_grad for parameter in module.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in module.parameters()],
        "values": [value.tolist() for value in module.state_dict().values()],
        "hooks": [len(part._forward_hooks) for part in module.modules()],
        "own attributes": sorted(vars(module)),
        "stage": trainer.state.stage,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


@pytest.mark.parametrize("module_class", [ToyModule, TwoOptimizers])
def test_everything_is_as_it_was_around_each_run(tmp_path, monkeypatch, module_class):
    """Watches the callback's own run in a real fit, in mid-training, with gradients lying about."""
    compared = []
    run = GFICallback._run

    def watched(callback, trainer, module, step, epoch):
        before = state_of(trainer, module)
        scalars = run(callback, trainer, module, step, epoch)
        after = state_of(trainer, module)
        for name in before:
            assert after[name] == before[name], name
        compared.append(sum(gradient is not None for gradient in after["gradients"]))
        return scalars

    class Watched(module_class):
        def training_step(self, batch, batch_idx):
            self.network.coarse.eval()
            return super().training_step(batch, batch_idx)

        def forward(self, images):
            self.log("seen", images.mean())  # in forward, as some do
            return super().forward(images)

    monkeypatch.setattr(GFICallback, "_run", watched)
    trainer = make_trainer(tmp_path, quick_callback(every_n_steps=1), max_epochs=1)
    trainer.fit(Watched(), **loaders())
    assert image_steps(trainer) == [0, 1, 2, 3]
    assert compared[0] == 0
    assert min(compared[1:]) > 0


def test_gradients_that_the_user_accumulates_by_hand_survive(tmp_path):
    class ByHand(TwoOptimizers):
        """Zeroes its gradients only after every third batch."""

        def training_step(self, batch, batch_idx):
            self.manual_backward(ToyModule.training_step(self, batch, batch_idx))
            if batch_idx % 3 == 2:
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()

    results = []
    for callbacks in ([quick_callback(every_n_steps=1)], []):
        L.seed_everything(0, verbose=False)
        module = ByHand()
        make_trainer(tmp_path, *callbacks).fit(module, **loaders())
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_loader_that_is_made_anew_draws_the_same_numbers(tmp_path):
    """Where validation is off or late we ask for the loader ourselves; the run's own request stays what it was."""

    class OwnLoaders(ToyModule):
        def val_dataloader(self):
            requests.append(float(torch.rand(1)))
            return DataLoader(Pictures(), 4)

    results = []
    for callbacks in ([quick_callback()], []):
        requests = []
        L.seed_everything(0, verbose=False)
        module = OwnLoaders()
        trainer = make_trainer(tmp_path, *callbacks, check_val_every_n_epoch=2, num_sanity_val_steps=0)
        trainer.fit(module, loaders()["train_dataloaders"])
        results.append((module.state_dict(), requests[-1], float(torch.rand(1))))
    (weights, request, draw), (plain_weights, plain_request, plain_draw) = results
    assert (request, draw) == (plain_request, plain_draw)
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)


class OwnGenerators(Pictures):
    """Augments by generators of its own, of every kind."""

    def __init__(self):
        super().__init__(24)
        self.first, self.second = np.random.default_rng(0), np.random.RandomState(0)
        self.third, self.fourth = random.Random(0), torch.Generator().manual_seed(0)

    def __getitem__(self, index):
        draw = self.first.random() + self.second.rand() + self.third.random()
        image, label = super().__getitem__(index)
        return image * draw + torch.rand(1, generator=self.fourth), label


def test_a_data_set_that_owns_its_random_numbers(tmp_path):
    results = []
    for callbacks in ([quick_callback()], []):
        L.seed_everything(0, verbose=False)
        train, val = random_split(OwnGenerators(), [16, 8])
        module = ToyModule()
        make_trainer(tmp_path, *callbacks).fit(module, **loaders(train, val))
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
