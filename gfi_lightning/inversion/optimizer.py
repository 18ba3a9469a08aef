"""Adam, for many small problems at once."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015) on rows that are problems of their own, with torch's default constants.

    The state is a value, so that it can be cut into chunks and handed from image to targets, which
    ``torch.optim.Adam`` does not allow for.

    Attributes:
        first: running mean of the gradient, shape (N, K).
        second: running mean of its square, shape (N, K).
        steps: taken so far.
    """

    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def start(cls, weights: Tensor) -> "Adam":
        """The state before the first step."""
        return cls(weights.new_zeros(weights.shape), weights.new_zeros(weights.shape))

    def __getitem__(self, rows: Tensor | slice) -> "Adam":
        return replace(self, first=self.first[rows], second=self.second[rows])

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> tuple["Adam", Tensor]:
        """The state and the weights after one step."""
        # The order of operations is torch's own, so that both round alike.
        steps = self.steps + 1
        first = self.first.lerp(gradient, 1 - _BETA1)
        second = (self.second * _BETA2).addcmul(gradient, gradient, value=1 - _BETA2)
        deviation = second.sqrt() / math.sqrt(1 - _BETA2**steps) + _EPSILON
        moved = weights.addcdiv(first, deviation, value=-learning_rate / (1 - _BETA1**steps))
        return Adam(first, second, steps), moved
