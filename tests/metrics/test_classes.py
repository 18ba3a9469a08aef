"""What all metric classes have in common: ranks, resets, copies, devices."""

import copy
import pickle
import warnings

import pytest
import torch
import torchmetrics
from torch import distributed

from gfi_lightning import UsageError, metrics
from tests.networks import ToyCNN, random_images

COUNT = 3


def explain(model, images, targets):
    images = images.clone().requires_grad_()
    scores = model(images).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(scores, images)[0].abs().sum(1)


def maps(seed):
    return torch.rand(COUNT, 16, 16, generator=torch.Generator().manual_seed(seed))


def regions(seed):
    return maps(100 + seed) > 0.6


def boxes(seed):
    return [torch.tensor([[0, 0, 7 + 3 * number + 4 * seed, 12]]) for number in range(COUNT)]


def classes(seed):
    return torch.arange(COUNT) + seed


def images(seed):
    return random_images(COUNT, seed=seed, dtype=torch.float32)


# For each class how to make one, and the arguments of an update by a seed.
CASES = {
    "PointingGame": (lambda: metrics.PointingGame(6, 1), lambda seed: (maps(seed), regions(seed), classes(seed))),
    "EnergyPointingGame": (metrics.EnergyPointingGame, lambda seed: (maps(seed), regions(seed))),
    "LocalizationError": (lambda: metrics.LocalizationError(1.0), lambda seed: (maps(seed), boxes(seed))),
    "SalientObject": (metrics.SalientObject, lambda seed: (maps(seed), regions(seed))),
    "InsertionDeletion": (
        lambda: metrics.InsertionDeletion(steps=3),
        lambda seed: (ToyCNN(), images(seed), maps(seed), classes(seed)),
    ),
    "AverageDrop": (metrics.AverageDrop, lambda seed: (ToyCNN(), images(seed), maps(seed), classes(seed))),
    "IncreaseInConfidence": (
        metrics.IncreaseInConfidence,
        lambda seed: (ToyCNN(), images(seed), maps(seed), classes(seed)),
    ),
    "HeatmapDrift": (metrics.HeatmapDrift, lambda seed: (maps(seed), maps(50 + seed))),
    "Sparsity": (metrics.Sparsity, lambda seed: (maps(seed),)),
    "RandomizationSanity": (
        lambda: metrics.RandomizationSanity(stages=2),
        lambda seed: (explain, ToyCNN(), images(seed), classes(seed)),
    ),
    "Sensitivity": (
        lambda: metrics.Sensitivity(samples=2),
        lambda seed: (explain, ToyCNN(), images(seed), classes(seed)),
    ),
}
every_class = pytest.mark.parametrize("name", CASES)


def updated(name, seeds):
    make, arguments = CASES[name]
    metric = make()
    for seed in seeds:
        metric.update(*arguments(seed))
    return metric


def computed_on_rank(name, seeds_of_ranks):
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a rank without images computes before an update
        return updated(name, seeds_of_ranks[distributed.get_rank()]).compute()


def test_every_class_is_here():
    public = {name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)}
    assert {name for name in public if issubclass(getattr(metrics, name), torchmetrics.Metric)} == set(CASES)


@every_class
def test_ranks_compute_what_one_process_does(name, two_ranks):
    expected = updated(name, [0, 1, 2]).compute()
    for seeds_of_ranks in ([0], [1, 2]), ([0, 1, 2], []):
        for result in two_ranks(computed_on_rank, name, seeds_of_ranks):
            torch.testing.assert_close(result, expected, equal_nan=True)


@every_class
def test_reset_forgets(name):
    metric = updated(name, [0])
    before = str(metric.compute())
    metric.reset()
    metric.update(*CASES[name][1](1))
    assert str(metric.compute()) == str(updated(name, [1]).compute()) != before


@every_class
def test_copies_and_pickles_go_on(name):
    metric = updated(name, [0])
    for one in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        one.update(*CASES[name][1](1))
        torch.testing.assert_close(one.compute(), updated(name, [0, 1]).compute(), equal_nan=True)


@every_class
def test_forward_gives_the_batch_and_sums_up(name):
    make, arguments = CASES[name]
    metric = make()
    torch.testing.assert_close(metric(*arguments(0)), updated(name, [0]).compute(), equal_nan=True)
    torch.testing.assert_close(metric(*arguments(1)), updated(name, [1]).compute(), equal_nan=True)
    torch.testing.assert_close(metric.compute(), updated(name, [0, 1]).compute(), equal_nan=True)


@every_class
def test_without_images_it_is_unknown(name):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        result = CASES[name][0]().compute()
    parts = result.values() if isinstance(result, dict) else [result]
    assert all(part.isnan().all() for part in parts)


@every_class
def test_a_bad_update_leaves_no_trace(name):
    metric, arguments = updated(name, [0]), CASES[name][1](1)
    bad = [one * torch.nan if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in arguments]
    with pytest.raises(UsageError, match="NaN"):
        metric.update(*bad)
    torch.testing.assert_close(metric.compute(), updated(name, [0]).compute(), equal_nan=True)


def moved(argument, device):
    if isinstance(argument, list):
        return [one.to(device) for one in argument]
    return argument.to(device) if isinstance(argument, (torch.Tensor, torch.nn.Module)) else argument


@pytest.mark.gpu
@pytest.mark.parametrize("metric_device", ["cpu", "cuda"])
@every_class
def test_on_a_gpu(name, metric_device):
    make, arguments = CASES[name]
    metric = make().to(metric_device)
    metric.update(*(moved(one, "cuda") for one in arguments(0)))
    result = metric.compute()
    parts = list(result.values()) if isinstance(result, dict) else [result]
    assert {one.device.type for one in parts} == {metric_device}
    # Weights that are drawn on a GPU are others.
    if name != "RandomizationSanity":
        expected = updated(name, [0]).compute()
        torch.testing.assert_close(result, expected, check_device=False, equal_nan=True, rtol=1e-3, atol=1e-3)


@every_class
def test_states_move_between_types(name):
    metric = updated(name, [0])
    metric.set_dtype(torch.float64)
    expected = updated(name, [0]).compute()
    torch.testing.assert_close(metric.compute(), expected, check_dtype=False, equal_nan=True)


def test_a_collection():
    arguments = CASES["EnergyPointingGame"][1](0)
    collection = torchmetrics.MetricCollection([metrics.EnergyPointingGame(), metrics.SalientObject()])
    collection.update(*arguments)
    collection.update(*CASES["EnergyPointingGame"][1](1))
    result = collection.compute()
    torch.testing.assert_close(result["EnergyPointingGame"], updated("EnergyPointingGame", [0, 1]).compute())
    torch.testing.assert_close(result["mae"], updated("SalientObject", [0, 1]).compute()["mae"])
