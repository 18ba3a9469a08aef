"""How far maps have moved."""

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef


def heatmap_drift(heatmaps: Tensor, previous: Tensor) -> Tensor:
    """1 − Spearman's rank correlation between each map and the one before.

    Args:
        heatmaps: shape (N, H, W).
        previous: the same samples' maps of the run before, same shape.

    Returns:
        Shape (N,): 0 where nothing moved, 1 where the maps are unrelated, 2 where they are reversed. A map
        that is constant (degenerate) has no ranks: 0 against another such, 1 against any other.
    """
    now, before = heatmaps.flatten(1).double(), previous.flatten(1).double()
    flat_now, flat_before = _is_constant(now), _is_constant(before)
    comparable = ~flat_now & ~flat_before
    drift = (flat_now != flat_before).to(now.dtype)
    if comparable.any():
        # One column per sample; a single sample must be a vector.
        correlation = spearman_corrcoef(now[comparable].T.squeeze(1), before[comparable].T.squeeze(1))
        drift[comparable] = (1 - correlation).to(drift)
    return drift


def _is_constant(rows: Tensor) -> Tensor:
    return torch.eq(rows.amax(1), rows.amin(1))
