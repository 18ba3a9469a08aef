"""Find the base layers of a network by looking at one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from gfi_lightning.inversion.layers import Hooks, Layer, feature_maps, hookable, image_size, times
from gfi_lightning.inversion.scores import first_tensor

_POOLING = tuple(
    getattr(nn, f"{prefix}{kind}Pool{dims}d")
    for prefix, kind in (("", "Max"), ("", "Avg"), ("", "LP"), ("AdaptiveMax", ""), ("AdaptiveAvg", ""))
    for dims in (1, 2, 3)
)
_PADDING = tuple(getattr(nn, f"{kind}Pad2d") for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular"))
# What these return is pooled, padded, flattened, a share of attention or merely passed on: never a feature map of its
# own.
_NOT_FEATURES = (
    *_POOLING,
    *_PADDING,
    nn.FractionalMaxPool2d,
    nn.Softmax,
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

Grid = tuple[int, int]


@dataclass
class Found:
    """A feature map that was seen.

    Attributes:
        layer: where.
        shape: its channels and resolution, (K, h, w).
        call: of the module, from 1.
        output: what the module returned; None: not kept.
        doubtful: it may be something else by its form, which is not channels first: weights that do not come from
            the image, or tokens that have no part in the model's output. See :class:`Trial`.
    """

    layer: Layer
    shape: tuple[int, ...]
    call: int
    output: Tensor | None
    doubtful: bool

    @property
    def grid(self) -> Grid:
        """Its resolution, (h, w)."""
        return self.shape[1], self.shape[2]


class FeatureMapSearch:
    """Watches a forward pass of the whole model for the last feature map before pooling or flattening.

    Every module's output is looked at in the order in which the modules return, so the last one that is a
    feature map wins, and of each resolution the last one is kept. Pooling, padding, flattening and dropout do
    not count, nor does a container that only hands on what they returned. Where a container hands on the
    feature map itself (``layer4`` that of ``layer4.1.relu``), it gives the map its name, being what people call
    it.

    Args:
        model: to be watched.
        images: of the forward pass, shape (N, C, H, W).
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self._names = hookable(model)
        self._images = images
        self._calls = dict.fromkeys(self._names, 0)
        self._calls_with_extent: dict[str, int] = {}  # the last one, which a name alone stands for
        self._seen_grids: set[Grid] = set()
        self._lengths: set[int] = set()  # of sequences of tokens
        self._trail: list[Found] = []
        # Kept for the sake of their identity: who returns the same object only hands it on.
        self._original: Tensor | None = None
        self._pooled: Tensor | None = None

    def hooks(self) -> Hooks:
        """What to hook for the forward pass."""
        return dict.fromkeys(self._names, self)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The forward hook."""
        self._calls[module] += 1
        if feature_maps(output, image_size(self._images)) is not None:
            self._calls_with_extent[self._names[module]] = self._calls[module]
        tensor = first_tensor(output)
        if tensor is None or (isinstance(module, _NOT_FEATURES) and any(tensor is given for given in args)):
            return
        handed_on = tensor is self._original
        if handed_on and self._trail[-1].layer.name.startswith(f"{self._names[module]}."):
            # It may have worked on it in place, such as by adding what it skipped.
            self._trail.pop()
            self._keep(self._names[module], self._calls[module], tensor)
        elif isinstance(module, _NOT_FEATURES) or tensor is self._pooled:
            self._pooled = self._pooled if handed_on else tensor
        elif self._is_feature_map(tensor):
            self._keep(self._names[module], self._calls[module], tensor)

    def chosen(self, resolutions: int, accepts: Callable[[Found], bool] = lambda _: True) -> list[Found]:
        """The last feature map, and in front of it up to so many more, each of twice the next one's resolution.

        Fewer where there are none; an empty list where no module gives a feature map.

        Args:
            resolutions: how many at most.
            accepts: which feature maps may be chosen.
        """
        last = self._last(accepts)
        chosen = [] if last is None else [last]
        while chosen and len(chosen) < resolutions:
            finer = self._last(accepts, twice=chosen[0].grid)
            if finer is None:
                break
            chosen.insert(0, finer)
        return [replace(found, layer=self._named(found)) for found in chosen]

    def announcement(self, chosen: list[Found]) -> str:
        """What was found, in one line; and what would be finer, where it is too coarse to show much."""
        line = base_layers([(str(found.layer), found.shape) for found in chosen])
        finest = chosen[0].grid
        finer = [found for found in self._trail if _positions(found.grid) >= _FEW_POSITIONS]
        if _positions(finest) >= _FEW_POSITIONS or not finer:
            return line
        best = min(reversed(finer), key=lambda found: _positions(found.grid))
        return f"{line} That is coarse: layer={str(self._named(best))!r} has {times(best.shape)}."

    def _last(self, accepts: Callable[[Found], bool], twice: Grid | None = None) -> Found | None:
        fitting = (found for found in reversed(self._trail) if twice is None or is_twice(found.grid, twice))
        return next(filter(accepts, fitting), None)

    def _named(self, found: Found) -> Layer:
        """With the call, where the name alone would stand for another one."""
        name = found.layer.name
        return Layer(name) if self._calls_with_extent[name] == found.call else Layer(name, found.call)

    def _keep(self, name: str, call: int, tensor: Tensor) -> None:
        maps = feature_maps(tensor, image_size(self._images))
        assert maps is not None
        shape = tuple(maps.shape[1:])
        doubtful = tensor.ndim != 4 or tensor.shape[1:] != shape
        self._original = tensor
        self._trail.append(Found(Layer(name), shape, call, tensor, doubtful))
        self._forget()

    def _forget(self) -> None:
        """Keeps the last of each resolution, as it is now, for the next module may work in place."""
        newest = self._trail[-1]
        assert newest.output is not None
        newest.output = newest.output.clone()
        for found in self._trail[:-1]:
            if found.grid == newest.grid:
                found.output = None

    def _is_feature_map(self, tensor: Tensor) -> bool:
        maps = feature_maps(tensor, image_size(self._images))
        if maps is None or len(maps) != len(self._images):
            return False
        grid = (maps.shape[2], maps.shape[3])
        if tensor.ndim == 3:
            self._lengths.add(tensor.shape[1])
        is_one = self._are_patches(tensor.shape[1], grid) if tensor.ndim == 3 else not self._has_heads(tensor, grid)
        if is_one:
            self._seen_grids.add(grid)
        return is_one

    def _are_patches(self, length: int, grid: Grid) -> bool:
        """Whether a sequence is a grid of patches: as cut before, or merged since, or cut out of the image.

        A sequence that is as long as the image is high or wide is one of its rows or columns.
        """
        if any(_is_merged(grid, seen) for seen in self._seen_grids):
            return True
        size = image_size(self._images)
        return length not in size and all(pixels % cells == 0 for pixels, cells in zip(size, grid, strict=True))

    def _has_heads(self, tensor: Tensor, grid: Grid) -> bool:
        """Whether it is a sequence split into heads of attention, (N, heads, L, K) or (N, L, heads, K)."""
        height, width = image_size(self._images)
        as_wide = grid[0] * width / height  # as the image's aspect ratio would have it
        return abs(grid[1] - as_wide) > 2 and any(length in self._lengths for length in tensor.shape[1:3])


class Trial(FeatureMapSearch):
    """Watches a forward pass with gradients, to choose between the image and the output, and not beside them.

    By their form alone, a table of position biases may pass for a feature map, and so do the patch tokens that
    the last layers of a transformer still compute, though only its class token is classified.

    Args:
        model: to be watched.
        images: of the forward pass, shape (N, C, H, W); a gradient with respect to them can be had.
    """

    @property
    def last_output(self) -> Tensor | None:
        """What the last feature map's module returned."""
        return self._trail[-1].output if self._trail else None

    def chosen_between(self, output: Tensor, resolutions: int) -> list[Found]:
        """What :meth:`chosen` says of the feature maps that come from the images, and that the output comes from.

        Args:
            output: the model's.
            resolutions: how many at most.
        """
        tracked = [found for found in self._trail if found.output is not None and found.output.requires_grad]
        outputs = [cast(Tensor, found.output) for found in tracked]
        descendants = _descendants(self._images, outputs)
        # NaN stays NaN times 0, so an untrained head of zeros hides nothing. One pass, because FSDP allows no more.
        gradients = torch.autograd.grad(output, outputs, torch.full_like(output, torch.nan), allow_unused=True)
        between = {
            id(found)
            for found, tensor, gradient in zip(tracked, outputs, gradients, strict=True)
            if tensor.grad_fn in descendants and self._reaches_a_position(gradient)
        }
        return self.chosen(resolutions, lambda found: id(found) in between) or self.chosen(resolutions)

    def _reaches_a_position(self, gradient: Tensor | None) -> bool:
        maps = None if gradient is None else feature_maps(gradient, image_size(self._images))
        return maps is not None and bool(maps.isnan().any())

    def _forget(self) -> None:
        """Nothing: the graph keeps it all anyway, and a clone would be no part of it."""


def _descendants(ancestor: Tensor, tensors: list[Tensor]) -> set[Any]:
    """The nodes of the graphs of some tensors that have to do with an ancestor, which is a leaf."""
    children: dict[Any, list[Any]] = {}
    waiting = [tensor.grad_fn for tensor in tensors]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for parent, _ in getattr(node, "next_functions", ()):
            children.setdefault(parent, []).append(node)
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)
    found: set[Any] = set()
    waiting = [node for node in seen if getattr(node, "variable", None) is ancestor]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += children.get(node, [])
    return found


def base_layers(chosen: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Layers and the shapes of their feature maps, (K, h, w), in a sentence."""
    described = " and ".join(f"{name}, feature maps of {times(tuple(shape))}" for name, shape in chosen)
    return f"Base layer{'s' * (len(chosen) > 1)}: {described}."


def _positions(grid: Grid) -> int:
    return grid[0] * grid[1]


def is_twice(finer: Grid, coarser: Grid) -> bool:
    """Whether the finer one has twice the resolution, give or take what odd sizes and unpadded borders make of it."""
    twice = all(-1 <= fine - 2 * coarse <= 2 for fine, coarse in zip(finer, coarser, strict=True))
    return twice and _positions(finer) > _positions(coarser)


def _is_merged(grid: Grid, seen: Grid) -> bool:
    """Whether a grid may have been made of another one by merging as many positions both ways, the odd ones or not."""
    return any(
        all(merged in (fine // stride, -(-fine // stride)) for merged, fine in zip(grid, seen, strict=True))
        for stride in range(1, max(seen) + 1)
    )
