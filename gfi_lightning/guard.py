"""Leave everything as it was found: random numbers, and a module's modes, flags and buffers."""

import copy
import dis
import inspect
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from types import FunctionType
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

    Afterwards every module's own train/eval flag, every parameter's ``requires_grad``, every buffer, every other
    attribute of a module (counters, lists, stored activations), every hook and the random states are as they
    were, also after an exception. Gradients (``.grad``) are not touched at all.

    The user's hooks that only look on are not called: backward hooks, and forward hooks that cannot return
    anything. What they collect would be about our passes, and not about the run.
    """
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(_preserved_attributes(module))
        _silence_observers(module)  # the line above brings them back
        stack.enter_context(_eval_mode(module))
        stack.enter_context(_frozen(module))
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the import would take seconds
            # A compiled forward ignores hooks that came after its compilation.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))  # maps without evidence divide 0 by 0
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


def _silence_observers(module: nn.Module) -> None:
    for part in module.modules():
        part._backward_hooks.clear()
        part._backward_pre_hooks.clear()
        for key in [key for key, hook in part._forward_hooks.items() if _cannot_return(hook)]:
            del part._forward_hooks[key]


def _cannot_return(hook: Any) -> bool:
    """Whether every return of a function is that of None, as its bytecode shows."""
    while isinstance(hook, partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)  # of a method
    if not isinstance(function, FunctionType):
        function = getattr(type(hook), "__call__", None)  # noqa: B004  # of an object that can be called
    if not isinstance(function, FunctionType) or inspect.isgeneratorfunction(function):
        return False
    return all(
        (now.opname == "RETURN_CONST" and now.argval is None)
        or (before.opname == "LOAD_CONST" and before.argval is None and not now.is_jump_target)
        for before, now in pairwise(dis.get_instructions(function))
        if now.opname in ("RETURN_CONST", "RETURN_VALUE")
    )


# What a forward may change: attributes are put back, of these kinds with their content, tensors by value.
_CONTAINERS = (list, dict, set, deque, OrderedDict, Counter, defaultdict)


@contextmanager
def _preserved_attributes(module: nn.Module) -> Iterator[None]:
    attributes = [(vars(part), dict(vars(part))) for part in module.modules()]
    own = [value for _, before in attributes for value in before.values()]
    containers = [(value, copy.copy(value)) for value in own if type(value) in _CONTAINERS]
    buffers = [buffer for part in module.modules() for buffer in part._buffers.values()]
    tensors = [(value, value.detach().clone()) for value in (*own, *buffers) if _has_values(value)]
    try:
        yield
    finally:
        for now, before in attributes:
            for added in now.keys() - before.keys():
                del now[added]
            now.update(before)
        for container, before in containers:
            _refill(container, before)
        for tensor, before in tensors:
            # Compared first: writing the same values again would still count as a change to autograd.
            if not torch.equal(tensor, before):
                with torch.no_grad():
                    tensor.copy_(before)


def _has_values(value: Any) -> bool:
    # Not of a subclass, which may be spread over ranks, or have no values yet.
    return type(value) is Tensor and value.layout == torch.strided and not value.is_meta


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(content)
