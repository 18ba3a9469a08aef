"""Find, list and capture the feature maps of a network."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.scores import first_tensor

_POOLING = tuple(
    getattr(nn, f"{prefix}{kind}Pool{dims}d")
    for prefix, kind in (("", "Max"), ("", "Avg"), ("", "LP"), ("AdaptiveMax", ""), ("AdaptiveAvg", ""))
    for dims in (1, 2, 3)
)
# What these return is pooled, flattened or merely passed on: never a feature map of its own.
_NOT_FEATURES = (
    *_POOLING,
    nn.FractionalMaxPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_FEW_POSITIONS = 16  # a mask of fewer hardly tells where it lies
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


def _hookable(model: nn.Module) -> dict[nn.Module, str]:
    """The names of a model's modules, but for the model itself and those that torch.jit took over: no hooks there."""
    return {
        module: name
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    }


Hooks = dict[nn.Module, Callable[..., None]]


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


@dataclass
class Capture:
    """What a module returned: a hook that keeps its output.

    The output is cloned, because the next module may work in place. A module may be called several times, as
    ReLUs often are that a network shares: then the last output with spatial extent is kept, or, if there is
    none, the last.

    Attributes:
        image_size: (H, W) of the images.
        output: what was kept.
        call: the number of the call that returned it, from 1; 0: there was none.
    """

    image_size: tuple[int, int]
    output: Tensor | None = None
    call: int = 0
    _calls: int = 0
    _has_extent: bool = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        self._calls += 1
        has_extent = feature_maps(output, self.image_size) is not None
        if has_extent or not self._has_extent:
            tensor = first_tensor(output)
            self.output = None if tensor is None else tensor.clone()
            self.call, self._has_extent = self._calls, has_extent


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


class LastFeatureMap(Capture):
    """Watches a forward pass of the whole model for the last feature map before pooling or flattening.

    Every module's output is looked at in the order in which the modules return, so the last one that is a
    feature map wins. Pooling, flattening and dropout do not count, nor does a container that only hands on
    what they returned. Where a container hands on the feature map itself (``layer4`` that of
    ``layer4.1.relu``), it gives the map its name, being what people call it.

    Attributes:
        name: the module that was found.
        output: what it returned (a clone), shape (N, ...).
        call: the number of the call that returned it, from 1.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__(image_size(images))
        self.name: str | None = None
        self._names = _hookable(model)
        self._images = images
        self._counts = dict.fromkeys(self._names, 0)
        self._grids: list[tuple[int, int]] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        # Kept for the sake of their identity: who returns the same object only hands it on.
        self._original: Tensor | None = None
        self._pooled: Tensor | None = None

    def hooks(self) -> Hooks:
        """What to hook for the forward pass."""
        return dict.fromkeys(self._names, self)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        self._counts[module] += 1
        tensor = first_tensor(output)
        if tensor is None:
            return
        handed_on = tensor is self._original
        if handed_on and str(self.name).startswith(f"{self._names[module]}."):
            self._shapes.pop(str(self.name))
            self._keep(module, tensor)
        elif isinstance(module, _NOT_FEATURES) or tensor is self._pooled:
            self._pooled = self._pooled if handed_on else tensor
        elif self._is_feature_map(tensor):
            self._keep(module, tensor)

    def _keep(self, module: nn.Module, tensor: Tensor) -> None:
        self.name, self.call = self._names[module], self._counts[module]
        self._original, self.output = tensor, tensor.clone()
        maps = feature_maps(tensor, image_size(self._images))
        if maps is not None:
            self._shapes[self.name] = tuple(maps.shape[1:])

    def announcement(self) -> str:
        """What was found, in one line; and what would be finer, where it is too coarse to show much."""
        shape = self._shapes[str(self.name)]
        line = f"Base layer: {self.name}, feature maps of {_times(shape)}."
        finer = [name for name, (_, height, width) in self._shapes.items() if height * width >= _FEW_POSITIONS]
        if shape[1] * shape[2] >= _FEW_POSITIONS or not finer:
            return line
        return f"{line} That is coarse: layer={finer[-1]!r} has {_times(self._shapes[finer[-1]])}."

    def _is_feature_map(self, tensor: Tensor) -> bool:
        maps = feature_maps(tensor, image_size(self._images))
        if maps is None or len(maps) != len(self._images):
            return False
        grid = (maps.shape[2], maps.shape[3])
        if tensor.ndim == 4:
            self._grids.append(grid)
            return True
        # A sequence is a grid of patches only where patches were cut before: same grid, or merged since.
        return any(height % grid[0] == 0 and width % grid[1] == 0 for height, width in self._grids)


class AllFeatureMaps:
    """Watches a forward pass for the shape of every feature map, for error messages."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._names = _hookable(model)
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
        return "\n".join(f"  {name}: {_times(shape)}" for name, shape in self.shapes.items())


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def image_size(images: Tensor) -> tuple[int, int]:
    """(H, W) of images (N, C, H, W)."""
    return images.shape[2], images.shape[3]


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
