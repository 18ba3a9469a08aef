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
        every_n_steps: what ``at_step`` stands for; None: something else.
    """

    every_n_epochs: int | None
    at_step: Steps | None = None
    first_epoch_only: bool = False
    every_n_steps: int | None = None

    @classmethod
    def of(cls, schedule: str | Steps | None, every_n_epochs: int, every_n_steps: int | None) -> "Schedule":
        """The schedule that the callback's arguments stand for, once they are checked."""
        if callable(schedule):
            return cls(None, schedule)
        if schedule == "log":
            return cls(every_n_epochs, _is_early, first_epoch_only=True)
        if every_n_steps is not None:
            return cls(None, partial(_is_multiple, every_n_steps), every_n_steps=every_n_steps)
        return cls(every_n_epochs)

    def is_after_step(self, steps: int, epoch: int) -> bool:
        """Whether to explain after so many optimiser steps, of which the last one lay in this epoch (from 0)."""
        if self.at_step is None or (self.first_epoch_only and epoch > 0):
            return False
        return bool(self.at_step(steps))

    def is_after_epoch(self, epoch: int) -> bool:
        """Whether to explain at the end of this epoch (from 0)."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0

    def runs(self, steps: int, steps_per_epoch: int) -> int | None:
        """How many follow that of the untrained model, the one at the end among them.

        Args:
            steps: of the optimiser in the whole training.
            steps_per_epoch: likewise.

        Returns:
            None where a function of the user's own decides.
        """
        if self.every_n_steps is not None:
            # What follows the very first step has no place of its own beside the untrained model.
            return -(-steps // self.every_n_steps) - (self.every_n_steps == 1 < steps)
        if self.every_n_epochs is None:
            return None
        places = {steps, *range(self.every_n_epochs * steps_per_epoch, steps, self.every_n_epochs * steps_per_epoch)}
        if self.first_epoch_only:
            early = min(steps, steps_per_epoch)
            places |= {2**power + 1 for power in range(early.bit_length()) if 2**power < early}
        return len(places)

    def __str__(self) -> str:
        """When to explain, in words."""
        if self.every_n_steps is not None:
            return "after every optimiser step" if self.every_n_steps == 1 else f"every {self.every_n_steps} steps"
        if self.every_n_epochs is None:
            return "by a schedule of your own"
        epochs = "after every epoch" if self.every_n_epochs == 1 else f"every {self.every_n_epochs} epochs"
        return f"at steps 1, 2, 4, 8, … of the first epoch, and {epochs}" if self.first_epoch_only else epochs


def is_power_of_two(number: int) -> bool:
    """Whether it is 1, 2, 4, 8 and so on."""
    return number > 0 and number & (number - 1) == 0


def _is_early(steps: int) -> bool:
    # Most of what a model learns to look at, it learns early. The x axis counts from 0, where the untrained model is.
    return is_power_of_two(steps - 1)


# Not a lambda, because callbacks are pickled.
def _is_multiple(number: int, steps: int) -> bool:
    return steps % number == 0
