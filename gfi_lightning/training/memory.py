"""What one run leaves behind for the next to start from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gfi_lightning.inversion.results import Explanation, Inversion
from gfi_lightning.inversion.start import Start

Pair = tuple[int, int, int | None]  # the number of a sample, its target, and what that is contrasted with


class Memory:
    """What the previous run has found for this rank's samples and their targets, on the CPU.

    Args:
        skips_evidence: passes that what was found makes needless are left out. Not among several ranks, each of which
            would know of others, as some models wait in each pass for that of the other ranks.
    """

    def __init__(self, skips_evidence: bool) -> None:
        self._skips_evidence = skips_evidence
        self._foreground: Tensor | None = None
        self._found: dict[Pair, tuple[Tensor, Tensor]] = {}

    def keep(self, inversion: Inversion, explanations: Sequence[tuple[list[int], Explanation]]) -> None:
        """Instead of what was there before: of all samples, and of some by their numbers."""
        self._foreground = inversion.weights.cpu()
        self._found = {}
        for numbers, explanation in explanations:
            start = Start.of(inversion, explanation)
            assert start.weights is not None
            assert start.signs is not None
            rows = [one.flatten(0, -2).cpu() for one in (start.weights, start.signs)]
            pairs = _pairs(numbers, explanation.targets, explanation.against)
            self._found |= dict(zip(pairs, zip(*rows, strict=True), strict=True))

    def forget(self) -> None:
        """The next run starts cold."""
        self._foreground = None

    def of_images(self) -> Start | None:
        """Where stage 1 of all samples starts; None: cold."""
        return None if self._foreground is None else Start(self._foreground)

    def of_targets(self, numbers: list[int], targets: Tensor, against: Tensor | None) -> Start | None:
        """Where stage 2 starts, for targets (n,) or (n, T) of some samples by their numbers; None: cold."""
        if self._foreground is None:
            return None
        nothing = self._foreground.new_full(self._foreground.shape[1:], torch.nan)
        unknown = nothing, torch.ones_like(nothing, dtype=torch.int8)
        found = [self._found.get(pair, unknown) for pair in _pairs(numbers, targets, against)]
        weights, signs = (torch.stack(rows).unflatten(0, targets.shape) for rows in zip(*found, strict=True))
        return Start(self._foreground[numbers], weights, signs, self._skips_evidence)


def _pairs(numbers: list[int], targets: Tensor, against: Tensor | None) -> list[Pair]:
    """One for each target, in order."""
    owners = torch.tensor(numbers).repeat_interleave(targets.numel() // len(numbers)).tolist()
    others = [None] * targets.numel() if against is None else against.flatten().tolist()
    return list(zip(owners, targets.flatten().tolist(), others, strict=True))
