"""Find, list and capture the feature maps of a network."""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.scores import first_tensor

_MOST_EXTRA_TOKENS = 8  # class, distillation and register tokens, which come before the patches


def feature_maps(output: Any, image_size: tuple[int, int]) -> Tensor | None:
    """A module's output as feature maps (N, K, h, w), or None where it has no spatial extent.

    Understood are maps with channels first (N, K, h, w) or last (N, h, w, K), whichever has more nearly the
    image's aspect ratio, and patch tokens (N, L, K) whose number, after up to 8 leading class or register
    tokens, makes a grid of the image's aspect ratio. One position alone is no spatial extent.

    Args:
        output: what the module returned.
        image_size: (H, W) of the image.
    """
    tensor = first_tensor(output)
    if tensor is None:
        return None
    if tensor.ndim == 3:
        return _tokens_to_grid(tensor, image_size)
    if tensor.ndim != 4:
        return None
    if _distortion(tensor.shape[1:3], image_size) < _distortion(tensor.shape[2:4], image_size):
        tensor = tensor.permute(0, 3, 1, 2)
    return tensor if tensor.shape[2] * tensor.shape[3] > 1 else None


def _distortion(size: tuple[int, ...], image_size: tuple[int, int]) -> float:
    return abs(math.log((size[0] / size[1]) / (image_size[0] / image_size[1])))


def _tokens_to_grid(tokens: Tensor, image_size: tuple[int, int]) -> Tensor | None:
    for extra in range(_MOST_EXTRA_TOKENS + 1):
        patches = tokens.shape[1] - extra
        height = round(math.sqrt(max(patches, 0) * image_size[0] / image_size[1]))
        width = round(math.sqrt(max(patches, 0) * image_size[1] / image_size[0]))
        if patches > 1 and height * width == patches:
            grid: Tensor = tokens[:, extra:].transpose(1, 2).unflatten(2, (height, width))
            return grid
    return None


def hookable(model: nn.Module) -> dict[nn.Module, str]:
    """The names of a model's modules, but for the model itself and those that torch.jit took over: no hooks there."""
    return {
        module: name
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    }


Hooks = dict[nn.Module, Callable[..., Any]]


@contextmanager
def hooked(hooks: Hooks) -> Iterator[None]:
    """Forward hooks that live as long as the context."""
    handles: list[RemovableHandle] = []
    try:
        for module, hook in hooks.items():
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


_pass: ContextVar[int] = ContextVar("_pass", default=0)


def begin_pass() -> None:
    """Tells every :class:`Capture` that what it counts from now on is another forward pass."""
    _pass.set(_pass.get() + 1)


@dataclass
class Capture:
    """What a module returned: a hook that keeps its output.

    The output is cloned, because the next module may work in place. A module may be called several times, as
    ReLUs often are that a network shares: then the last output with spatial extent is kept, or, if there is
    none, the last. Of several forward passes, see :func:`begin_pass`, the last one counts.

    Attributes:
        image_size: (H, W) of the images.
        wanted: the number of the call whose output is kept, from 1; None: the rule above.
        output: what was kept.
        call: the number of the call that returned it, from 1; 0: there was none.
    """

    image_size: tuple[int, int]
    wanted: int | None = None
    output: Tensor | None = None
    call: int = 0
    _calls: int = 0
    _has_extent: bool = False
    _pass: int | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        if self._pass != _pass.get():
            self.call, self._calls, self._has_extent, self._pass = 0, 0, False, _pass.get()
        self._calls += 1
        has_extent = feature_maps(output, self.image_size) is not None
        if self._calls == self.wanted or (self.wanted is None and (has_extent or not self._has_extent)):
            tensor = first_tensor(output)
            self.output = None if tensor is None else tensor.clone()
            self.call, self._has_extent = self._calls, has_extent


@dataclass
class Tap:
    """A hook that keeps what a module returned from the given call, to have the gradient with respect to it.

    The pass goes on with a clone where it can, because the next module may work in place.

    Attributes:
        call: of the module, from 1.
        output: of that call, part of the graph.
    """

    call: int
    output: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The forward hook."""
        self.call -= 1
        if self.call != 0:
            return None
        kept = self.output = first_tensor(output)
        if kept is None:
            return None
        if type(output) in (tuple, list):
            return type(output)(kept.clone() if part is kept else part for part in output)
        return kept.clone() if kept is output else None


class Reached(BaseException):
    """Ends a forward pass at the inversion layer.

    Not an Exception, so that a model's own ``except Exception`` does not swallow it.
    """


@dataclass
class StopAt:
    """A hook that ends the forward pass as soon as a module has returned from the given call.

    Attributes:
        call: of the module, from 1.
        ends: False: only the output is kept, and the pass goes on.
        output: of that call.
    """

    call: int
    ends: bool = True
    output: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        self.call -= 1
        if self.call == 0:
            self.output = first_tensor(output)
            if self.ends:
                raise Reached
            # The next module may work in place.
            self.output = None if self.output is None else self.output.clone()


class AllFeatureMaps:
    """Watches a forward pass for the shape of every feature map, for error messages."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._names = hookable(model)
        self._images = images

    def hooks(self) -> Hooks:
        """What to hook for the forward pass."""
        return dict.fromkeys(self._names, self)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        maps = feature_maps(output, image_size(self._images))
        if maps is not None and len(maps) == len(self._images):
            self.shapes[self._names[module]] = tuple(maps.shape[1:])

    def __str__(self) -> str:
        return "\n".join(f"  {name}: {times(shape)}" for name, shape in self.shapes.items())


def times(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    return " × ".join(map(str, shape))


def image_size(images: Tensor) -> tuple[int, int]:
    """(H, W) of images (N, C, H, W)."""
    return images.shape[2], images.shape[3]


@dataclass(frozen=True)
class Layer:
    """A module by its dotted name, and which of its calls in a forward pass.

    Attributes:
        name: the module's.
        call: from 1; None: the last one with spatial extent, see :class:`Capture`.
    """

    name: str
    call: int | None = None

    @classmethod
    def parse(cls, text: str, names: Container[str]) -> "Layer":
        """``name``, or ``name:call`` where no module has such a name."""
        name, colon, call = text.rpartition(":")
        return cls(name, int(call)) if colon and text not in names and call.isdecimal() else cls(text)

    def __str__(self) -> str:
        return self.name if self.call is None else f"{self.name}:{self.call}"


LayerLike = str | nn.Module


def as_layers(layer: LayerLike | Sequence[LayerLike]) -> tuple[LayerLike, ...]:
    """One layer or several, as several; a module counts as one, also where it has a length."""
    return tuple(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else (layer,)


def module_name(model: nn.Module, layer: str | nn.Module, argument: str = "layer") -> str:
    """The dotted name of a layer.

    Raises:
        UsageError: a module that is not part of the model. (A name that does not exist is found at the first
            forward pass, whose shapes the message needs.)
    """
    if isinstance(layer, str):
        return layer
    for name, module in model.named_modules():
        if module is layer:
            return str(name)
    raise UsageError(
        f"{argument}={type(layer).__name__}(...) is not part of this model: give one of its modules, or a name."
    )
