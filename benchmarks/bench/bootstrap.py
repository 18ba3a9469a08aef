"""Bootstrap intervals: how much of a figure is the luck of the images."""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure over some images, with its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    images: int


def estimate(values: np.ndarray, statistic: str = "mean", seed: int = 0) -> Estimate:
    """A statistic of per-image values, with its 95 % interval over 2,000 resamples of the images.

    Args:
        values: shape (N,); NaN where an image was not measured.
        statistic: "mean" or "median".
        seed: of the resamples; the same for the same number of images.
    """
    measured = values[~np.isnan(values)]
    if len(measured) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    summarize = {"mean": np.mean, "median": np.median}[statistic]
    rows = np.random.default_rng(seed).integers(len(measured), size=(RESAMPLES, len(measured)))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(summarize(measured[rows], axis=1), [tail, 100 - tail])
    return Estimate(float(summarize(measured)), float(low), float(high), len(measured))


def paired_difference(values: np.ndarray, others: np.ndarray, statistic: str = "mean", seed: int = 0) -> Estimate:
    """The statistic of values − others over the images for which both were measured; see :func:`estimate`."""
    return estimate(values - others, statistic, seed)
