"""Leave everything as it was found: random numbers, modes, flags, and whatever a forward pass may change."""

import copy
import dis
import inspect
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

Restore = Callable[[], Any]


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
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run a module for explaining: in eval mode, frozen, eager, with gradients to be had for its input.

    Afterwards every part's own train/eval flag, every parameter's ``requires_grad``, every buffer and the random
    states are as they were, also after an exception. Gradients (``.grad``) are not touched at all.
    """
    parts = list(_parts(module))
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        stack.enter_context(preserved_state(part._buffers for part in parts))
        # Once more, for a ScriptModule, which keeps them elsewhere.
        stack.enter_context(preserved_state(list(part.buffers(recurse=False)) for part in _scripted(parts)))
        stack.enter_context(_eval_mode(parts))
        stack.enter_context(_frozen(parts))
        stack.enter_context(_without_reentrant_checkpointing())
        stack.enter_context(_gathered_as_before(parts))
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the import would take seconds
            # A compiled forward ignores hooks that came after its compilation.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))  # maps without evidence divide 0 by 0
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def unnoticed(module: nn.Module) -> Iterator[None]:
    """Run a module in the middle of its training so that not even code of its own can tell afterwards.

    Every attribute of every part (counters, lists, metrics, generators) and every hook is as it was, and so is what
    the hooks keep elsewhere, as far as their variables reach. Hooks that only look on are not called: backward
    hooks, and forward hooks that cannot return anything.
    """
    parts = list(_parts(module))
    # Parameters stay those that they are, and FSDP exchanges the tensors behind them as it needs.
    spared = {id(part._parameters) for part in parts}
    mementos = (memento for part in parts for memento in _mementos(part, spared=spared))
    with _preserved(mementos):
        _silence_observers(parts)  # the line above brings them back
        with _preserved(_mementos_of_hooks(parts)):
            yield


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """A module's modules, and those that it hides from PyTorch in a list or the like, as people do with teachers."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            waiting += [*part.children(), *(held for held in _held_by(part) if isinstance(held, nn.Module))]
    yield from found.values()


def _scripted(parts: Iterable[nn.Module]) -> list[nn.Module]:
    return [part for part in parts if isinstance(part, torch.jit.ScriptModule)]


@contextmanager
def _eval_mode(parts: Iterable[nn.Module]) -> Iterator[None]:
    # The flags are set one by one: `.eval()` may be overridden, and `.train()` would wake up frozen parts.
    flags = [(part, part.training) for part in parts]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training


@contextmanager
def _frozen(parts: Iterable[nn.Module]) -> Iterator[None]:
    # Only ω needs a gradient: without theirs, the weights' share of the backward pass and the activations
    # saved for it fall away. Not those that FSDP spreads over ranks: it takes over the flag once and for ever.
    parameters = (one for part in parts for one in part.parameters(recurse=False))
    trainable = [one for one in parameters if one.requires_grad and not hasattr(one, "device_mesh")]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _gathered_as_before(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Leave those parts whole again that FSDP had left whole after its last pass."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, not used
    sharded = [] if fsdp is None else [part for part in parts if isinstance(part, fsdp.FSDPModule)]
    whole = [part for part in sharded if not all(hasattr(one, "device_mesh") for one in part.parameters())]
    try:
        yield
    finally:
        for part in sharded:
            part.unshard() if part in whole else part.reshard()


@contextmanager
def _without_reentrant_checkpointing() -> Iterator[None]:
    # torch refuses autograd.grad through it, and what is seen within has no gradient: it is called directly.
    before = CheckpointFunction.apply
    CheckpointFunction.apply = staticmethod(lambda function, _, *args: function(*args))
    try:
        yield
    finally:
        CheckpointFunction.apply = before


def _silence_observers(parts: Iterable[nn.Module]) -> None:
    for part in parts:
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


@contextmanager
def preserved_state(owners: Iterable[Any], tensors: bool = True) -> Iterator[None]:
    """Put back the attributes of objects, and what they hold of the kinds that change in place.

    These are lists, dictionaries, sets and queues with their content, random generators with their state, and
    tensors with their values.

    Args:
        owners: the objects.
        tensors: whether to put back those, too, which takes a copy of each.
    """
    with _preserved([memento for owner in owners for memento in _mementos(owner, tensors)]):
        yield


@contextmanager
def _preserved(mementos: Iterable[Restore]) -> Iterator[None]:
    mementos = list(mementos)
    try:
        yield
    finally:
        for restore in mementos:
            restore()


def _mementos(owner: Any, tensors: bool = True, spared: Container[int] = ()) -> Iterator[Restore]:
    if hasattr(owner, "__dict__"):
        yield partial(_restore_attributes, vars(owner), dict(vars(owner)))
    for held in [owner, *_held_by(owner)]:
        if type(held) in _CONTAINERS and id(held) not in spared:
            yield partial(_refill, held, copy.copy(held))
        elif isinstance(held, random.Random):
            yield partial(held.setstate, held.getstate())
        elif isinstance(held, np.random.Generator):
            yield partial(setattr, held.bit_generator, "state", held.bit_generator.state)
        elif isinstance(held, np.random.RandomState | torch.Generator):
            restore: Callable[[Any], Any] = held.set_state
            yield partial(restore, held.get_state())
        elif tensors and _has_values(held):
            yield partial(_restore_values, held, held.detach().clone())


_CONTAINERS = (list, dict, set, deque, OrderedDict, Counter, defaultdict)


def _held_by(owner: Any) -> list[Any]:
    """An object's attributes, and what the containers among them hold; or what a container holds."""
    attributes = list(getattr(owner, "__dict__", {}).values())
    containers = [held for held in (owner, *attributes) if isinstance(held, (*_CONTAINERS, tuple))]
    contents = [one.values() if isinstance(one, Mapping) else one for one in containers]
    return [*attributes, *(inner for content in contents for inner in content)]


def _has_values(value: Any) -> bool:
    # Not of a subclass, which may be a parameter, be spread over ranks, or have no values yet.
    return type(value) is Tensor and value.layout == torch.strided and not value.is_meta


def _restore_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    for added in now.keys() - before.keys():
        del now[added]
    now.update(before)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(content)


def _restore_values(tensor: Tensor, before: Tensor) -> None:
    with torch.no_grad():
        if tensor.shape != before.shape:
            tensor.set_(before)  # type: ignore[call-overload]
        # Compared first: writing the same values again would still count as a change to autograd.
        elif not torch.equal(tensor, before):
            tensor.copy_(before)


def _mementos_of_hooks(parts: Iterable[nn.Module]) -> Iterator[Restore]:
    """For whatever the user's hooks that are still there can reach: objects that they belong to, and variables."""
    hooks = [hook for part in parts for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]
    reached: dict[int, Any] = {}
    for hook in hooks:
        if (getattr(hook, "__module__", None) or "").startswith("torch."):  # FSDP's, say, knows what it does
            continue
        while isinstance(hook, partial):
            reached |= {id(one): one for one in (*hook.args, *hook.keywords.values())}
            hook = hook.func
        if isinstance(hook, MethodType):
            reached[id(hook.__self__)] = hook.__self__
            hook = hook.__func__
        if not isinstance(hook, FunctionType):
            reached[id(hook)] = hook
            continue
        for cell in hook.__closure__ or ():
            with suppress(ValueError):  # nothing has been assigned yet
                yield partial(setattr, cell, "cell_contents", cell.cell_contents)
                reached[id(cell.cell_contents)] = cell.cell_contents
        for name in {*hook.__code__.co_names} & hook.__globals__.keys():
            yield partial(hook.__globals__.__setitem__, name, hook.__globals__[name])
            reached[id(hook.__globals__[name])] = hook.__globals__[name]
    for owner in reached.values():
        if not isinstance(owner, (ModuleType, type, FunctionType, nn.Module)):
            yield from _mementos(owner)


def parts_of_dataset(dataset: Any) -> list[Any]:
    """A data set, those that it wraps, and their transforms: whatever may change when an item is read."""
    found: dict[int, Any] = {}
    waiting = [dataset]
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in found:
            found[id(part)] = part
            waiting += part if isinstance(part, (list, tuple)) else [getattr(part, name, None) for name in _WRAPPED]
    return list(found.values())


_WRAPPED = ("dataset", "datasets", "transform", "transforms", "target_transform")
