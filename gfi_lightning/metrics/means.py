"""Averages over images that are summed up over batches and ranks."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMeans(Metric):
    """Several numbers for each image, averaged over all images of all ranks: the base of most metrics here.

    Args:
        numbers: how many numbers.
        options: see ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, numbers: int, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", torch.zeros(numbers), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, *values: Tensor) -> None:
        """Take in one batch: tensors (N,) or (N, k), which make up the numbers side by side."""
        columns = torch.cat([one.reshape(len(one), -1).to(self.sums) for one in values], 1)
        self.sums += columns.sum(0)
        self.count += len(columns)

    def means(self) -> Tensor:
        """Each number's mean, shape (numbers,); NaN where there was no image."""
        return self.sums / self.count
