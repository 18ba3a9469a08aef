"""What an explanation costs: passes through the network, by image."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gfi_lightning.inversion.scores import first_tensor


@dataclass
class Passes:
    """Passes through a network, counted by image: one forward pass of a batch of 16 counts as 16.

    A pass that is broken off on its way, as stage 1's is behind its inversion layer, counts as a whole one; and so
    does a backward pass, however far it goes.
    """

    calls: list["_Call"] = field(default_factory=list)

    @property
    def forwards(self) -> int:
        """Images that went through the network."""
        return sum(call.images for call in self.calls)

    @property
    def backwards(self) -> int:
        """Images whose gradients were propagated back, from the output or only from a layer."""
        return sum(call.images * max(call.at_input, call.at_output) for call in self.calls)


@dataclass
class _Call:
    """One forward pass, and how often a gradient passed by either of its ends."""

    images: int
    at_input: int = 0
    at_output: int = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """Count the passes through a network within the context. The calls must not be nested."""
    passes = Passes()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        images = first_tensor((*args, *kwargs.values()))
        call = _Call(0 if images is None else len(images))
        passes.calls.append(call)
        _watch(images, call, "at_input")

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _watch(first_tensor(output), passes.calls[-1], "at_output")

    handles = [model.register_forward_pre_hook(enter, with_kwargs=True), model.register_forward_hook(leave)]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _watch(tensor: Tensor | None, call: _Call, end: str) -> None:
    def note(gradient: Tensor) -> None:
        setattr(call, end, getattr(call, end) + 1)

    if tensor is not None and tensor.requires_grad:
        tensor.register_hook(note)


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """How long a call takes, with what it leaves to a GPU."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
