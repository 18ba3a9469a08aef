"""Whether a validation step gives the model the images of its batch, which are those that are explained."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

_FEW = 2
_ROUNDING = 1e-2  # of the largest value: more than half precision takes away


class StepWatch:
    """Looks on while one validation batch is worked on, without touching anything.

    Attributes:
        is_over: there was one.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._handle: RemovableHandle | None = None
        self._expected: Tensor | None = None
        self._seen: list[str] = []
        self._of_steps = 0  # calls to come

    def begin(self, module: nn.Module, images: Tensor, is_wrapped: bool = False) -> None:
        """Watch what a module is called with, until :meth:`end`.

        Args:
            module: that the step calls.
            images: of the batch, (N, C, H, W).
            is_wrapped: it is called for the step itself before the step calls it.
        """
        self._of_steps = int(is_wrapped)
        self._expected = images[:_FEW].detach().float().nan_to_num()  # a copy, as a step may work in place
        self._handle = module.register_forward_pre_hook(self._look, with_kwargs=True)

    def end(self) -> tuple[str, str] | None:
        """What the batch holds and what the model was given instead, in words; None: the same, or no images."""
        if self._handle is None or self._expected is None:
            return None
        self._handle.remove()
        words, seen = _in_words(self._expected), self._seen
        self.is_over, self._handle, self._expected, self._seen = True, None, None, []
        return None if not seen or "" in seen else (words, seen[0])

    def _look(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._of_steps > 0:
            self._of_steps -= 1
            return
        with suppress(Exception):  # whatever this is: it is the user's step
            leaves = [one.detach() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.ndim == 4]
            images = [one for one in leaves if one.numel() > 0]
            self._seen += ["" if self._is_expected(one) else _in_words(one[:_FEW].float()) for one in images]

    def _is_expected(self, images: Tensor) -> bool:
        assert self._expected is not None
        few = images[: len(self._expected)].to(self._expected).nan_to_num()
        limit = _ROUNDING * float(self._expected.abs().max())
        forms = [few, few.permute(0, 3, 1, 2)]
        return any(torch.allclose(one, self._expected, 0, limit) for one in forms if one.shape == self._expected.shape)


def _in_words(images: Tensor) -> str:
    shape = " × ".join(map(str, images.shape[1:]))
    return f"{shape}, mean {float(images.mean()):.3g}, standard deviation {float(images.std(correction=0)):.3g}"
