"""A run with the callback is the run without it."""

import random
from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.training.modules import Pictures, ToyModule, image_steps, loaders, make_trainer, quick_callback


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
    [{}, {"every_n_steps": 1}, {"every_n_epochs": 2, "targets": [0, 1], "background": "noise"}],
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


def test_modes_flags_gradients_and_hooks_in_mid_training(tmp_path):
    class Watched(ToyModule):
        """Compares itself before and after the callbacks' hooks."""

        def state(self):
            return {
                "modes": [module.training for module in self.modules()],
                "flags": [parameter.requires_grad for parameter in self.parameters()],
                "gradients": [None if p.grad is None else p.grad.clone() for p in self.parameters()],
                "hooks": [len(module._forward_hooks) for module in self.modules()],
                "stage": self.trainer.state.stage,
            }

        def training_step(self, batch, batch_idx):
            self.network.coarse.eval()
            return super().training_step(batch, batch_idx)

        def on_before_zero_grad(self, optimizer):
            self.before = self.state()

        def on_train_batch_end(self, *_):
            # Called after the callbacks' hook of the same name.
            now = self.state()
            for name in ("modes", "flags", "hooks", "stage"):
                assert now[name] == self.before[name], name
            checked.append(sum(gradient is not None for gradient in now["gradients"]))

    checked = []
    trainer = make_trainer(tmp_path, quick_callback(every_n_steps=1), max_epochs=1)
    trainer.fit(Watched(), **loaders())
    assert len(image_steps(trainer)) == len(checked) == 4
    assert min(checked) > 0


def test_gradients_that_are_being_accumulated_survive(tmp_path):
    gradients = {}

    class Watched(ToyModule):
        def on_after_backward(self):
            gradients.setdefault(id(self.trainer), []).append(
                [p.grad.clone() for p in self.parameters() if p.grad is not None]
            )

    for callbacks in ([quick_callback(every_n_steps=1)], []):
        L.seed_everything(0, verbose=False)
        trainer = make_trainer(tmp_path, *callbacks, accumulate_grad_batches=3)
        trainer.fit(Watched(), **loaders())
    with_callback, without = (list(chain.from_iterable(batches)) for batches in gradients.values())
    assert all(torch.equal(one, other) for one, other in zip(with_callback, without, strict=True))


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
