"""Optimisers for many small problems at once.

Each row of a layer's ω is a problem of its own. The state is a value, so that it can be cut into chunks and handed from
image to targets, which the optimisers of ``torch.optim`` do not allow for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_MOMENTUM = 0.8

T = TypeVar("T")


class Optimizer(Protocol):
    """What the method asks of one; ``steps`` were taken so far."""

    @property
    def steps(self) -> int: ...  # noqa: D102

    @classmethod
    def start(cls: type[T], weights: Tensor) -> T:
        """The state before the first step, for ω of shape (N, K)."""

    def __getitem__(self: T, rows: Tensor | slice) -> T: ...

    def step(self: T, weights: Tensor, gradient: Tensor, learning_rate: float, pace: Tensor) -> tuple[T, Tensor]:
        """The state and ω ≥ 0 after one step; pace multiplies the learning rate of each row, (N, 1)."""


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015) with torch's default constants; ω is clamped at 0 after each step.

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

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float, pace: Tensor) -> tuple["Adam", Tensor]:
        """The state and ω after one step."""
        # The order of operations is torch's own, so that both round alike.
        steps = self.steps + 1
        first = self.first.lerp(gradient, 1 - _BETA1)
        second = (self.second * _BETA2).addcmul(gradient, gradient, value=1 - _BETA2)
        deviation = second.sqrt() / math.sqrt(1 - _BETA2**steps) + _EPSILON
        moved = weights.addcdiv(first * pace, deviation, value=-learning_rate / (1 - _BETA1**steps))
        return Adam(first, second, steps), moved.clamp(min=0)


@dataclass(frozen=True)
class Multiplicative:
    """Exponentiated gradient descent (Kivinen and Warmuth 1997), with momentum: ω_k ← ω_k · exp(−η · v_k).

    ω stays positive without being clamped, and 0 stays 0. The gradient is divided by its largest
    component, so that the step has no scale to be tuned; a channel whose gradient is nothing but rounding
    hardly moves, where Adam would divide by that rounding and lift it to a full step. ω keeps the norm 1, on
    which the mask does not depend.

    Attributes:
        velocity: v, the sum of past gradients, each 0.8 times as much as the next: shape (N, K).
        steps: taken so far.
    """

    velocity: Tensor
    steps: int = 0

    @classmethod
    def start(cls, weights: Tensor) -> "Multiplicative":
        """The state before the first step."""
        return cls(weights.new_zeros(weights.shape))

    def __getitem__(self, rows: Tensor | slice) -> "Multiplicative":
        return replace(self, velocity=self.velocity[rows])

    def step(
        self, weights: Tensor, gradient: Tensor, learning_rate: float, pace: Tensor
    ) -> tuple["Multiplicative", Tensor]:
        """The state and ω after one step."""
        largest = torch.linalg.vector_norm(gradient, torch.inf, dim=1, keepdim=True)
        velocity = _MOMENTUM * self.velocity + divided(gradient, largest)
        moved = weights * torch.exp(-learning_rate * pace * velocity)
        return Multiplicative(velocity, self.steps + 1), unit_norm(moved)


def joined(states: Sequence[T], steps: int) -> T:
    """One state of those of several batches, one behind the other, after so many steps."""
    tensors = {
        part.name: torch.cat([getattr(state, part.name) for state in states])
        for part in fields(cast(Any, states[0]))
        if part.name != "steps"
    }
    return cast(T, replace(cast(Any, states[0]), **tensors, steps=steps))


def unit_norm(weights: Tensor) -> Tensor:
    """ω, (N, K), with norm 1; where it is 0 it stays 0."""
    return divided(weights, weights.norm(dim=1, keepdim=True))


def divided(values: Tensor, size: Tensor) -> Tensor:
    """Values (N, K) by their size (N, 1); where that is 0, so are they, and stay it."""
    return values / size.clamp(min=torch.finfo(size.dtype).tiny)
