"""The Gini index against its definition by pairs, and how large and how even a map is."""

import numpy as np
import pytest
import scipy
import torch

from gfi_lightning import UsageError
from gfi_lightning.metrics import Sparsity, entropy, gini, half_area


@pytest.mark.parametrize("power", [0.1, 1, 8])
def test_against_all_pairs(power):
    maps = torch.rand(5, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** power
    maps[1] *= -1
    values = maps.abs().flatten(1)
    # Half the mean absolute difference of all pairs, relative to the mean.
    expected = (values[:, :, None] - values[:, None, :]).abs().mean((1, 2)) / (2 * values.mean(1))
    torch.testing.assert_close(gini(maps), expected)
    torch.testing.assert_close(gini(1000 * maps), expected)


def test_known_cases():
    one = torch.zeros(1, 5, 4)
    one[0, 2, 3] = 0.7
    assert gini(one).item() == pytest.approx(1 - 1 / 20)
    assert gini(torch.zeros(1, 5, 4)).tolist() == [0]
    assert gini(torch.full((1, 200, 200), 0.3)).item() == pytest.approx(0, abs=1e-5)


def test_the_class_averages_over_images():
    maps = torch.rand(7, 4, 4)
    metric = Sparsity()
    for part in maps.split(4):
        metric.update(part)
    torch.testing.assert_close(metric.compute(), gini(maps).mean())


def test_misuse():
    with pytest.raises(UsageError, match=r"Tensor\(4, 4\)"):
        Sparsity().update(torch.rand(4, 4))
    with pytest.raises(UsageError, match=r"heatmaps\[1\] holds NaN or infinity"):
        Sparsity().update(torch.tensor([[[0.0, 1.0]], [[torch.inf, 1.0]]]))


def test_entropy_against_scipy():
    maps = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0)) - 0.3
    positive = maps.clamp(min=0).flatten(1).double().numpy()
    expected = scipy.stats.entropy(positive, axis=1) / np.log(30)
    np.testing.assert_allclose(entropy(maps), expected, rtol=1e-6)
    np.testing.assert_allclose(entropy(1000 * maps), expected, rtol=1e-6)


def test_entropy_of_known_maps():
    point, even = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.2)
    point[0, 3, 4] = 0.1
    assert entropy(torch.cat([point, even, 0 * even])).tolist() == pytest.approx([0, 1, 0])
    assert entropy(torch.ones(1, 1, 1)).tolist() == [0]


def test_half_area():
    ramp = torch.arange(1.0, 11).reshape(1, 2, 5)  # six of ten reach 5
    assert half_area(torch.cat([ramp, ramp / 7, 0 * ramp, -ramp])).tolist() == pytest.approx([0.6, 0.6, 0, 0])
    with pytest.raises(UsageError, match=r"Tensor\(4, 4\)"):
        half_area(torch.rand(4, 4))
