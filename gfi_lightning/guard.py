"""Leave everything as it was found: random numbers, and a module's modes, flags and buffers."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Put back the random states of torch (CPU and CUDA), numpy and python afterwards, whatever happens.

    Args:
        seed: seed all of them inside, so that what happens in there is the same each time.
    """
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            # Not torch.manual_seed, which reaches devices whose states we do not put back.
            torch.default_generator.manual_seed(seed)
            if cuda_states is not None:
                torch.cuda.manual_seed_all(seed)
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def preserved_generators(owner: Any) -> Iterator[None]:
    """Put back the random generators that a data set, one that it wraps, or their transforms own."""
    states = [(generator, _state(generator)) for generator in _generators(owner, depth=8)]
    try:
        yield
    finally:
        for generator, state in states:
            _set_state(generator, state)


_OWNERS = ("dataset", "datasets", "transform", "transforms", "target_transform")


def _generators(owner: Any, depth: int) -> Iterator[Any]:
    if depth == 0 or owner is None:
        return
    parts = list(owner) if isinstance(owner, (list, tuple)) else list(getattr(owner, "__dict__", {}).values())
    yield from (
        part
        for part in parts
        if isinstance(part, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator))
    )
    inner = parts if isinstance(owner, (list, tuple)) else [getattr(owner, name, None) for name in _OWNERS]
    for part in inner:
        yield from _generators(part, depth - 1)


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run a module for explaining: in eval mode, frozen, eager, with gradients to be had for its input.

    Afterwards every module's own train/eval flag, every parameter's ``requires_grad``, every buffer and the
    random states are as they were, also after an exception. Gradients (``.grad``) are not touched at all.
    """
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(_preserved_buffers(module))
        stack.enter_context(_eval_mode(module))
        stack.enter_context(_frozen(module))
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the import would take seconds
            # A compiled forward ignores hooks that came after its compilation.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    # The flags are set one by one: `.eval()` may be overridden, and `.train()` would wake up frozen parts.
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    # Only ω needs a gradient: without theirs, the weights' share of the backward pass and the activations
    # saved for it fall away.
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _preserved_buffers(module: nn.Module) -> Iterator[None]:
    before = [
        (part, name, buffer, buffer.detach().clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for part, name, buffer, value in before:
            _restore_buffer(part, name, buffer, value)


def _restore_buffer(part: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    if part._buffers.get(name) is not buffer:
        part._buffers[name] = buffer
    # Compared first: writing the same values again would still count as a change to autograd.
    if not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)
