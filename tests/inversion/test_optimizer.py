"""Both optimisers against what they stand for."""

import pytest
import torch

from gfi_lightning.inversion.optimizer import Adam, Multiplicative

GRADIENTS = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
START = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def after(optimizer, weights, gradients, learning_rate=0.1):
    state = optimizer.start(weights)
    for gradient in gradients:
        state, weights = state.step(weights, gradient, learning_rate, torch.ones(len(weights), 1))
    assert state.steps == len(gradients)
    return weights


def test_adam_is_torchs_with_a_clamp():
    weights = START.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.1)
    for gradient in GRADIENTS:
        weights.grad = gradient.clone()
        optimizer.step()
        weights.data.clamp_(min=0)
    torch.testing.assert_close(after(Adam, START, GRADIENTS), weights.detach(), rtol=1e-12, atol=1e-12)
    assert (weights == 0).any(), "nothing was clamped: the test would not tell"


def test_multiplicative_by_hand():
    row = after(Multiplicative, torch.tensor([[3.0, 4.0]]), [torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, 5.0]])])
    first = torch.tensor([3.0, 4.0]) * torch.exp(-0.1 * torch.tensor([1.0, -0.5]))
    second = first / first.norm() * torch.exp(-0.1 * torch.tensor([0.8, -0.4 + 1.0]))
    torch.testing.assert_close(row[0], second / second.norm())


def test_multiplicative_has_no_scale():
    plain = after(Multiplicative, START, GRADIENTS)
    torch.testing.assert_close(after(Multiplicative, 1e3 * START, 1e-6 * GRADIENTS), plain)
    assert (plain > 0).all()
    torch.testing.assert_close(plain.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_multiplicative_leaves_0():
    start = START.clone()
    start[0] = 0
    start[1, 2] = 0
    moved = after(Multiplicative, start, [GRADIENTS[0], torch.zeros_like(start)])
    assert (moved[0] == 0).all()
    assert moved[1, 2] == 0
    assert torch.isfinite(moved).all()


@pytest.mark.parametrize("optimizer", [Adam, Multiplicative])
def test_rows_are_problems_of_their_own(optimizer):
    together = after(optimizer, START, GRADIENTS)
    rows = torch.tensor([2, 0])
    state, weights = optimizer.start(START), START
    pace = torch.ones(3, 1)
    state, weights = state.step(weights, GRADIENTS[0], 0.1, pace)
    state, weights = state[rows], weights[rows]
    for gradient in GRADIENTS[1:]:
        state, weights = state.step(weights, gradient[rows], 0.1, pace[rows])
    torch.testing.assert_close(weights, together[rows])


@pytest.mark.parametrize("optimizer", [Adam, Multiplicative])
def test_pace_multiplies_the_learning_rate_of_a_row(optimizer):
    pace = torch.tensor([[1.0], [0.5], [0.0]])
    _, moved = optimizer.start(START).step(START, GRADIENTS[0], 0.1, pace)
    for row, factor in enumerate(pace):
        _, alone = optimizer.start(START).step(START, GRADIENTS[0], 0.1 * float(factor), torch.ones(3, 1))
        torch.testing.assert_close(moved[row], alone[row])
