"""Quantus takes our maps, and our method as a function; where we measure the same, it finds the same."""

import numpy as np
import pytest
import torch

from gfi_lightning import GuidedFeatureInversion, metrics
from tests.networks import ToyCNN, random_images

pytestmark = [
    pytest.mark.quantus,
    pytest.mark.filterwarnings("ignore"),  # of Quantus' own, about its parameters
]

IMAGES, LABELS = random_images(12, seed=3, dtype=torch.float32), torch.arange(12) % 5
QUIET = {"disable_warnings": True, "display_progressbar": False}


def explain(model, inputs, targets, **_):
    """Our method in the form that Quantus asks for."""
    return GuidedFeatureInversion(model, layer="coarse").attribute(inputs, targets)


@pytest.fixture(scope="module")
def model():
    return ToyCNN()


@pytest.fixture(scope="module")
def maps(model):
    return explain(model, IMAGES.numpy(), LABELS.numpy())


@pytest.fixture(scope="module")
def regions():
    """The left half of each even image, the upper half of each odd one."""
    regions = np.zeros((12, 1, 16, 16), dtype=bool)
    regions[::2, :, :, :8] = regions[1::2, :, :8] = True
    return regions


def measured(metric, model, maps=None, regions=None):
    """By maps that are there, or, without, by the function that makes them."""
    values = metric(
        model=model,
        x_batch=IMAGES.numpy(),
        y_batch=LABELS.numpy(),
        a_batch=maps,
        s_batch=regions,
        explain_func=explain,
        device="cpu",
    )
    return values if isinstance(values, dict) else np.array(values, dtype=float)


def test_arrays_give_arrays_of_the_same_maps(model, maps):
    assert isinstance(maps, np.ndarray)
    assert (maps.shape, maps.dtype) == ((12, 1, 16, 16), np.float32)
    of_tensors = GuidedFeatureInversion(model, layer="coarse").attribute(IMAGES, LABELS)
    np.testing.assert_array_equal(maps, of_tensors)
    # A type that the model does not have, and labels as others keep them.
    doubles = explain(model, IMAGES.double().numpy(), LABELS.numpy().astype(np.uint8))
    np.testing.assert_array_equal(doubles, maps)


@pytest.mark.parametrize("how", ["maps", "function"])
def test_what_we_measure_too_is_the_same(model, maps, regions, how):
    import quantus

    heatmaps, there = torch.from_numpy(maps[:, 0]), torch.from_numpy(regions[:, 0])
    pairs = {
        quantus.PointingGame: metrics.pointing_hits(heatmaps, there),
        quantus.RelevanceMassAccuracy: metrics.energy_in_region(heatmaps, there),
        quantus.Sparseness: metrics.gini(heatmaps),
    }
    for metric, ours in pairs.items():
        found = measured(metric(**QUIET), model, maps if how == "maps" else None, regions)
        np.testing.assert_allclose(found, ours.double(), atol=1e-5, err_msg=metric.__name__)
        assert len(set(np.round(found, 3))) > 1, metric.__name__  # else it would say nothing


def test_rank_accuracy_and_faithfulness(model, maps, regions):
    import quantus

    ranks = measured(quantus.RelevanceRankAccuracy(**QUIET), model, maps, regions)
    size = regions[0].sum()
    for row, found in enumerate(ranks):
        highest = np.argsort(maps[row].ravel())[-size:]
        assert found == pytest.approx(regions[row].ravel()[highest].mean(), abs=0.02)
    options = {"nr_runs": 20, "subset_size": 64, "perturb_baseline": "mean", **QUIET}
    for given in (maps, None):
        correlations = measured(quantus.FaithfulnessCorrelation(return_aggregate=False, **options), model, given)
        assert correlations.shape == (12,)
        assert (np.abs(correlations) <= 1).all()


def test_those_that_explain_again(model, maps):
    """They change the images, or the model: the function is asked about just those."""
    import quantus

    sensitivity = measured(quantus.MaxSensitivity(nr_samples=2, lower_bound=0.02, **QUIET), model, maps)
    assert ((sensitivity > 0) & (sensitivity < 1)).all()
    weights = [value.clone() for value in model.state_dict().values()]
    similarity = measured(quantus.MPRT(layer_order="top_down", **QUIET), model, maps)
    np.testing.assert_allclose(similarity.pop("original"), 1, atol=1e-4)
    assert np.mean([np.mean(values) for values in similarity.values()]) < 0.9
    assert all(map(torch.equal, weights, model.state_dict().values()))
