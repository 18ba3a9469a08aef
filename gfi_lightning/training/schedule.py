"""When it is time to explain."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

Steps = Callable[[int], bool]


@dataclass(frozen=True)
class Schedule:
    """Explain after every n-th epoch, after every n-th optimiser step, or after the steps that a function picks.

    Attributes:
        every_n_epochs: None: not by epochs.
        at_step: from the number of optimiser steps so far, from 1, to whether it is time; None: not by steps.
        first_epoch_only: steps count in the first epoch alone.
    """

    every_n_epochs: int | None
    at_step: Steps | None = None
    first_epoch_only: bool = False

    @classmethod
    def of(cls, schedule: str | Steps | None, every_n_epochs: int, every_n_steps: int | None) -> "Schedule":
        """The schedule that the callback's arguments stand for, once they are checked."""
        if callable(schedule):
            return cls(None, schedule)
        if schedule == "log":
            return cls(every_n_epochs, is_power_of_two, first_epoch_only=True)
        if every_n_steps is not None:
            return cls(None, partial(_is_multiple, every_n_steps))
        return cls(every_n_epochs)

    def is_after_step(self, steps: int, epoch: int) -> bool:
        """Whether to explain after so many optimiser steps, of which the last one lay in this epoch (from 0)."""
        if self.at_step is None or (self.first_epoch_only and epoch > 0):
            return False
        return bool(self.at_step(steps))

    def is_after_epoch(self, epoch: int) -> bool:
        """Whether to explain at the end of this epoch (from 0)."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0


def is_power_of_two(steps: int) -> bool:
    """1, 2, 4, 8, …: most of what a model learns to look at, it learns early."""
    return steps > 0 and steps & (steps - 1) == 0


# Not a lambda, because callbacks are pickled.
def _is_multiple(number: int, steps: int) -> bool:
    return steps % number == 0
