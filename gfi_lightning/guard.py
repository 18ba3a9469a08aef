"""Leave everything as it was found: random numbers, modes, flags, and whatever a forward pass may change."""

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
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
    put_back = rng_memento()
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            # Not torch.manual_seed, which reaches devices whose states we do not put back.
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
        yield
    finally:
        put_back()


def rng_memento() -> Restore:
    """How to put back the random states of torch (CPU and CUDA), numpy and python as they are now."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def put_back() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)

    return put_back


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Run a module for explaining: in eval mode, frozen, eager, with gradients to be had for its input.

    Afterwards every part's own train/eval flag, every parameter's ``requires_grad``, every buffer and the random
    states are as they were, also after an exception. Gradients (``.grad``) are not touched at all. Within another
    one of the same module it does nothing more.
    """
    if id(module) in _AT_WORK:
        yield
        return
    parts = _modules_within(module)
    with ExitStack() as stack:
        stack.callback(_AT_WORK.discard, id(module))
        _AT_WORK.add(id(module))
        stack.enter_context(preserved_rng())
        stack.enter_context(_preserved(_mementos_of_buffers(parts)))
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


_AT_WORK: set[int] = set()


@contextmanager
def unnoticed(module: nn.Module) -> Iterator[None]:
    """Run a module in the middle of its training so that its own code does not notice afterwards.

    What it can reach by its attributes, its parts' attributes and all their hooks' variables is as it was: see
    :func:`preserved_state`. Backward hooks are not called.
    """
    of_all_modules = (nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks)
    with preserved_state([module, *(hook for hooks in of_all_modules for hook in hooks.values())]):
        for part in module.modules():
            # They only look on; the line above brings them back.
            part._backward_hooks.clear()
            part._backward_pre_hooks.clear()
        yield


@contextmanager
def preserved_parameters(module: nn.Module, compare: bool) -> Iterator[list[nn.Parameter]]:
    """Put back the parameters that a forward pass writes into, as some do to keep a norm.

    Args:
        module: whose.
        compare: whether to find and mend also what is written in place, which takes a copy of all; it is done
            anyway for models of at most 16 million parameters.

    Yields:
        An empty list, which at the end holds the parameters that had changed.
    """
    tensors = [one for one in module.parameters() if type(one) is nn.Parameter and not hasattr(one, "device_mesh")]
    compare = compare or sum(one.numel() for one in tensors) <= _LARGE
    before = [(one, one.data, one.detach().clone() if compare else None) for one in tensors]
    changed: list[nn.Parameter] = []
    try:
        yield changed
    finally:
        for parameter, data, value in before:
            same = parameter.data_ptr() == data.data_ptr() and parameter.shape == data.shape
            parameter.data = parameter.data if same else data
            if value is not None and not torch.equal(parameter, value):
                parameter.data.copy_(value)
                same = False
            if not same:
                changed.append(parameter)


@contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """Lend a module to code that is not ours: what it leaves behind there is gone afterwards, whatever happens.

    Gradients (``.grad``) are set aside meanwhile, as others may run ``backward()`` or ``zero_grad()``. They, modes,
    ``requires_grad``, buffers, hooks, and which parameters and parts there are, are put back, and so are the weights of
    a model that is not large.
    """
    parts = _modules_within(module)
    parameters = [one for part in parts for one in part.parameters(recurse=False)]
    before = [(one, one.grad, one.requires_grad) for one in parameters]
    members = [
        held
        for part in parts
        for name, held in vars(part).items()
        if isinstance(held, dict) and ("_hooks" in name or name in ("_parameters", "_modules"))
    ]
    kinds = [(part, type(part)) for part in parts]  # which a parametrisation replaces
    try:
        for parameter in parameters:
            parameter.grad = None
        as_before = _preserved(partial(_refill, one, type(one).clear, type(one).update, dict(one)) for one in members)
        weights = preserved_parameters(module, compare=False)
        with _preserved(_mementos_of_buffers(parts)), _eval_mode(parts), as_before, weights:
            yield
    finally:
        for part, kind in kinds:
            if type(part) is not kind:
                part.__class__ = kind
        for parameter, gradient, required_grad in before:
            parameter.grad = gradient
            if parameter.requires_grad != required_grad:
                parameter.requires_grad_(required_grad)


@contextmanager
def preserved_state(roots: Iterable[Any], tensors: bool = True) -> Iterator[None]:
    """Put back whatever objects can reach: attributes, variables, and what changes in place.

    That is the content of lists, dictionaries, sets and queues, the state of random generators, and the values of
    tensors and arrays, down to a few levels below each module. Parameters, objects of PyTorch, Lightning and the
    standard library, and what is in containers of more than 1,000 are left alone.

    Args:
        roots: where to begin.
        tensors: True, for a model: tensors and arrays, too, of which a copy is made; but not what belongs to
            objects of installed packages, such as a logger's client, which may be at work in another thread.
            False, for data: these too, such as transforms with generators, but no tensors.
    """
    things = reachable(roots, others=not tensors)
    with _preserved([restore for thing in things for restore in _mementos(thing, tensors)]):
        yield


@contextmanager
def _preserved(mementos: Iterable[Restore]) -> Iterator[None]:
    with ExitStack() as stack:  # which goes on with the others where one fails
        for restore in mementos:
            stack.callback(restore)
        yield


@contextmanager
def _eval_mode(parts: Iterable[nn.Module]) -> Iterator[None]:
    # The flags are set one by one: `.eval()` may be overridden, and `.train()` would wake up frozen parts.
    flags = [(part, part.training) for part in parts]
    try:
        for part, training in flags:
            if training:  # a part is slow to be told anything
                part.training = False
        yield
    finally:
        for part, training in flags:
            if part.training != training:
                part.training = training


@contextmanager
def _frozen(parts: Iterable[nn.Module]) -> Iterator[None]:
    # Only ω needs a gradient: without theirs, the weights' share of the backward pass and the activations
    # saved for it fall away. Not those that FSDP spreads over ranks: it takes over the flag once and for ever.
    parameters = (one for part in parts for one in _own(part, "parameters"))
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
    CheckpointFunction.apply = staticmethod(lambda function, _, *args: function(*args))
    try:
        yield
    finally:
        del CheckpointFunction.apply  # and there is the inherited one again


def _own(part: nn.Module, kind: str) -> Iterable[Any]:
    """The "parameters" or "buffers" of a part alone: module.parameters() takes many times as long to look for them."""
    if isinstance(part, torch.jit.ScriptModule):  # which keeps them elsewhere
        members: Iterable[Any] = getattr(part, kind)(recurse=False)
        return members
    return [one for one in getattr(part, f"_{kind}").values() if one is not None]


def _modules_within(module: nn.Module) -> list[nn.Module]:
    """The module and all others that it can reach, also those in containers of the user's."""
    return [thing for thing in reachable([module], barren=False) if isinstance(thing, nn.Module)]


def reachable(
    roots: Iterable[Any], others: bool = False, variables: bool = False, barren: bool = True
) -> Iterator[Any]:
    """All things that can be reached from some, each once; a few levels deep, below each module anew.

    Args:
        roots: where to begin.
        others: whether objects of installed packages, other than modules, are there, too.
        variables: whether those of the user's functions are that are kept in attributes and containers; those of
            a module's hooks always are.
        barren: whether containers of nothing, or of nothing but a few numbers and strings, are told as well.
    """
    depths: dict[int, int] = {}
    waiting = [(root, 0) for root in roots]
    while waiting:
        thing, depth = waiting.pop()
        is_module = issubclass(type(thing), nn.Module)
        depth = 0 if is_module else depth
        if issubclass(type(thing), _ATOMS) or depths.get(id(thing), _DEEPEST + 1) <= depth:
            continue
        is_users = issubclass(type(thing), (nn.Module, *_CONTAINERS)) or not _is_installed(type(thing).__module__)
        if not (is_users or others):
            continue
        if id(thing) not in depths:
            yield thing
        depths[id(thing)] = depth  # again, if it was further away before
        if is_module:
            # Parameters stay those that they are, and FSDP exchanges the tensors behind them as it needs.
            depths[id(vars(thing).get("_parameters"))] = 0
        if depth < _DEEPEST:
            held = _held_by(thing, variables)
            if not barren:
                held = [one for one in held if type(one) not in _SIZED or (one and not _is_barren(one))]
            waiting += [(one, depth + 1) for one in held]


def _is_barren(thing: Any) -> bool:
    """Whether a container leads nowhere, as most of what a module holds."""
    values = thing.values() if isinstance(thing, dict) else thing
    return len(thing) <= _FEW and all(type(one) in _SIMPLE for one in values)


_CONTAINERS = (list, tuple, set, frozenset, deque, dict)
_SIZED = {*_CONTAINERS, OrderedDict}  # of a module's own dictionaries most hold nothing
_SIMPLE = {bool, int, float, str, type(None)}  # most of what a module holds
_SIMPLE_OR_FUNCTIONS = _SIMPLE | {FunctionType, MethodType, partial}
_DEEPEST = 4
_FEW = 8
_MANY = 1000
_LARGE = 2**24  # elements: of what is larger, and no buffer, no copy is made
_SMALL = 2**16  # elements: so many are copied and compared sooner than an operation begins
_ATOMS = (str, bytes, int, float, complex, type, ModuleType, type(None), torch.dtype, torch.device, nn.Parameter)
_LIBRARIES = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "numpy", "tensorboard"}
_LIBRARIES |= sys.stdlib_module_names


def _held_by(thing: Any, variables: bool) -> list[Any]:
    kind = type(thing)
    if kind is partial:
        return [thing.func, *thing.args, *thing.keywords.values()]
    if kind is MethodType:
        return [thing.__self__, thing.__func__]
    if kind is FunctionType:
        return [value for _, value in _variables(thing)]
    is_module = issubclass(kind, nn.Module)
    hooks = (*thing._forward_hooks.values(), *thing._forward_pre_hooks.values()) if is_module else ()
    # Their variables belong to whoever wrote them; but a hook's to the model's passes.
    left_out = _SIMPLE if variables else _SIMPLE_OR_FUNCTIONS
    return [*hooks, *[part for part in _parts(thing) if type(part) not in left_out]]


def _parts(thing: Any) -> Iterable[Any]:
    kind = type(thing)
    if issubclass(kind, nn.Module):
        return [*thing.children(), *vars(thing).values()]
    if issubclass(kind, _CONTAINERS):
        return [] if len(thing) > _MANY else list(thing.values() if issubclass(kind, dict) else thing)
    return [] if _is_library(kind) else _attributes(thing).values()


def _is_library(kind: Any) -> bool:
    name = str(getattr(kind, "__module__", ""))
    return name.partition(".")[0] in _LIBRARIES and not name.startswith("torch.utils.data")


@cache
def _is_installed(module: str) -> bool:
    file = getattr(sys.modules.get(module.partition(".")[0]), "__file__", None) or ""
    of_user = module.partition(".")[0] in ("torch", "numpy")  # their tensors and generators are the user's
    return not of_user and ("site-packages" in file or "dist-packages" in file)


def _attributes(thing: Any) -> dict[str, Any]:
    slots = [name for base in type(thing).__mro__ for name in vars(base).get("__slots__", ())]
    own = {name: getattr(thing, name) for name in slots if not name.startswith("__") and hasattr(thing, name)}
    return own | getattr(thing, "__dict__", {})


def _variables(function: FunctionType) -> list[tuple[Restore, Any]]:
    """The variables around a function of the user's: how to put each back, and its value."""
    if _is_library(function):
        return []
    variables = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing has been assigned yet
            variables.append((partial(setattr, cell, "cell_contents", cell.cell_contents), cell.cell_contents))
    names, now = {*function.__code__.co_names}, function.__globals__
    return variables + [(partial(now.__setitem__, name, now[name]), now[name]) for name in names & now.keys()]


def _mementos(thing: Any, tensors: bool) -> Iterator[Restore]:
    """How to put back one thing."""
    kind = type(thing)
    if kind is FunctionType:
        yield from (restore for restore, _ in _variables(thing))
    elif issubclass(kind, (list, deque)):
        yield partial(_refill, thing, kind.clear, kind.extend, list(thing))
    elif issubclass(kind, (set, dict)):
        yield partial(_refill, thing, kind.clear, kind.update, set(thing) if issubclass(kind, set) else dict(thing))
    elif issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
        yield partial(thing.setstate, thing.getstate())
    elif issubclass(kind, np.random.Generator):
        yield partial(setattr, thing.bit_generator, "state", thing.bit_generator.state)
    elif issubclass(kind, (np.random.RandomState, torch.Generator)):
        yield partial(thing.set_state, thing.get_state())
    elif tensors and kind is np.ndarray and thing.flags.writeable and thing.size <= _LARGE:
        yield partial(np.copyto, thing, thing.copy())
    elif tensors and kind is Tensor and thing.numel() <= _LARGE:
        yield from _mementos_of_tensor(thing)
    elif issubclass(kind, nn.Module) or not _is_library(kind):
        if hasattr(thing, "__dict__"):
            yield partial(_restore_attributes, vars(thing), dict(vars(thing)))
        for name in _attributes(thing).keys() - getattr(thing, "__dict__", {}).keys():
            yield partial(object.__setattr__, thing, name, getattr(thing, name))  # frozen ones, too


def _mementos_of_buffers(parts: Iterable[nn.Module]) -> Iterator[Restore]:
    few: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for part in parts:
        if not isinstance(part, torch.jit.ScriptModule):  # which keeps them elsewhere, and replaces none
            yield partial(_refill_if_other, part._buffers, dict(part._buffers))
        for buffer in _own(part, "buffers"):
            if _is_plain(buffer) and buffer.grad_fn is None and buffer.numel() <= _SMALL:
                few.setdefault((buffer.dtype, buffer.device), []).append(buffer)
            else:
                yield from _mementos_of_tensor(buffer)
    for buffers in few.values():
        yield _memento_of_tensors(buffers)


def _memento_of_tensors(tensors: list[Tensor]) -> Restore:
    """Of many small ones without a graph: one copy and one comparison instead of hundreds."""

    @torch.no_grad()
    def values() -> Tensor:
        return torch.cat([one.flatten() for one in tensors])

    def kinds() -> list[Any]:
        return [(one.shape, one.dtype, one.device, one.requires_grad, one.grad_fn) for one in tensors]

    before, kinds_before = values(), kinds()

    def put_back() -> None:
        if kinds() == kinds_before and torch.equal(values(), before):
            return
        parts = before.split([shape.numel() for shape, *_ in kinds_before])
        with ExitStack() as stack:
            for tensor, part, (shape, _, _, required_grad, _) in zip(tensors, parts, kinds_before, strict=True):
                stack.callback(_restore_tensor, tensor, part.clone().view(shape), True, required_grad)

    return put_back


def _mementos_of_tensor(tensor: Tensor) -> Iterator[Restore]:
    if _is_plain(tensor):
        yield partial(_restore_tensor, tensor, tensor.detach().clone(), tensor.grad_fn is None, tensor.requires_grad)


def _is_plain(tensor: Tensor) -> bool:
    """Not of a subclass, which may be spread over ranks, or have no values yet."""
    return type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_meta


def _restore_attributes(now: dict[str, Any], before: dict[str, Any]) -> None:
    for added in now.keys() - before.keys():
        del now[added]
    now.update(before)


def _refill_if_other(container: dict[str, Any], content: dict[str, Any]) -> None:
    if [*container] != [*content] or any(container[name] is not one for name, one in content.items()):
        _refill(container, dict.clear, dict.update, content)


def _refill(container: Any, clear: Callable[[Any], None], fill: Callable[[Any, Any], None], content: Any) -> None:
    clear(container)
    fill(container, content)


def _restore_tensor(tensor: Tensor, before: Tensor, had_no_graph: bool, required_grad: bool) -> None:
    if had_no_graph and tensor.grad_fn is not None:  # a running mean of images that now depend on ω, say
        tensor.detach_()
    with torch.no_grad():
        if tensor.shape != before.shape:
            tensor.set_(before)  # type: ignore[call-overload]
        # Compared first: writing the same values again would still count as a change to autograd.
        elif not torch.equal(tensor, before):
            tensor.copy_(before)
    if tensor.is_leaf and tensor.requires_grad != required_grad:
        tensor.requires_grad_(required_grad)
