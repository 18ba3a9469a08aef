"""Maps that another method makes, shown and judged as our own are."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from gfi_lightning.errors import UsageError, attempt
from gfi_lightning.guard import lent, preserved_rng
from gfi_lightning.inversion.blending import blend
from gfi_lightning.inversion.guided import GuidedFeatureInversion
from gfi_lightning.inversion.layers import image_size
from gfi_lightning.inversion.results import Chunk, Depths, Inversion
from gfi_lightning.inversion.scores import Question, at_least_float32, describe, scores_of_rows, target_scores
from gfi_lightning.inversion.stages import cleaned
from gfi_lightning.inversion.start import Start

MapFunction = Callable[[nn.Module, Tensor, Tensor], Any]

OF_ANY_METHOD = ("background", "score", "chunk_size", "forward")  # arguments that make sense beside explainer=
_SEED = 0  # of each call, so that a method that draws random numbers draws the same each time


class Foreign(NamedTuple):
    """The user's own method: what is called, and what it is called in pictures."""

    function: MapFunction
    name: str

    @classmethod
    def of(cls, function: MapFunction, name: str | None) -> "Foreign":
        """With the name of the function or class; of a lambda, which has none, that of the callback."""
        own = inner_name(function)
        return cls(function, own if own != "<lambda>" else name or "explainer")


def inner_name(function: Any) -> str:
    """The name of a function, or of the class of something else that can be called."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


class ForeignExplainer(GuidedFeatureInversion):
    """Asks somebody else for the maps, and does all else as for our own.

    There is no stage 1, but one pass over the untouched images; and for the maps of each chunk one call of the
    function, and one pass over what they keep and what they remove. Nothing starts from what was found before.

    The function's images are copies, which require a gradient, as other libraries need something that does; the
    model's parameters do not.

    Args:
        model: to be explained.
        foreign: the user's method, a function of the model, images (N, C, H, W) and targets (N,), int64, that returns
            maps: see :func:`as_heatmaps`.
        background: as for guided feature inversion, and so are the following.
        score: of a target.
        chunk_size: pairs of image and target that are explained at once.
        forward: how to call the model.
    """

    def __init__(self, model: nn.Module, foreign: Foreign, **options: Any) -> None:
        super().__init__(model, **options)
        self._foreign = foreign
        self._resolution = (1, 1)  # of the maps as they came; known after the first

    @property
    def method(self) -> str:
        """What makes the maps."""
        return self._foreign.name

    @override
    def passes(self, images: Tensor, targets: int = 1) -> tuple[int, int]:
        chunks = [-(-count // self.capacity.chunk_size_for(images)) for count in (len(images), targets * len(images))]
        return chunks[0], chunks[1]

    @override
    def refining_passes(self, images: Tensor, pairs: Sequence[int]) -> int:
        return sum(-(-count // self.capacity.chunk_size_for(images)) for count in pairs)

    @override
    def _invert(self, images: Tensor, background: Tensor, start: Tensor | None) -> tuple[Chunk, Depths]:
        with torch.no_grad():
            output = self._network.precision.tried(lambda: self._network.raw_output(images))
            output = self._network.understood(output, images)
        rows = torch.arange(len(images), device=images.device)
        pace = images.new_ones(len(images), 1)
        return Chunk(images, background, (), (), output, len(images), rows, (), (), (), pace), Depths()

    @override
    def _foreground(self, chunk: Chunk) -> Tensor:
        return torch.zeros(len(chunk.images), 0, 0, device=chunk.images.device)

    @override
    def _grid(self, inversion: Inversion) -> tuple[int, int]:
        return self._resolution

    @override
    def _refine(self, chunk: Chunk, question: Question, most: int, start: Start | None) -> dict[str, Tensor]:
        maps = self._called(chunk.images, question.targets)
        heatmaps, self._resolution = as_heatmaps(maps, chunk.images, self._foreign.name)
        with torch.no_grad():
            output = self._network.output(torch.cat(blend(chunk, heatmaps[:, None])))
        kept, removed = target_scores(output, question.repeated(2).targets, self.score).detach().chunk(2)
        untouched = scores_of_rows(chunk.output, chunk.count, question, self.score)
        return cleaned(heatmaps, heatmaps.new_zeros(len(heatmaps), 0), untouched, kept, removed)

    def _called(self, images: Tensor, targets: Tensor) -> Any:
        model, function = self._network.model, self._foreign.function
        remedy = (
            f"It was called with the LightningModule, images, {describe(images)}, which require a gradient, and "
            f"targets, {describe(targets)}; the module's parameters require none."
        )
        asked = attempt(f"explain by explainer={inner_name(function)}", remedy)
        with asked, lent(model), preserved_rng(_SEED), torch.enable_grad(), self._network.precision.of_a_pass():
            return function(model, images.detach().clone().requires_grad_(), targets.clone())


def as_heatmaps(maps: Any, images: Tensor, name: str) -> tuple[Tensor, tuple[int, int]]:
    """Another method's maps in the form of our own.

    What speaks against the target, the negative part, is cut off; maps are brought to the size of the images
    bilinearly, and divided by their maxima.

    Args:
        maps: a tensor or an array of numbers, (N, h, w) or (N, 1, h, w), of any resolution, on any device.
        images: (N, C, H, W).
        name: of the method.

    Returns:
        (N, H, W), float32 in [0, 1], on the images' device; zero where a map is nowhere positive, or not finite. And
        the resolution (h, w) that they came in, but not finer than the images.

    Raises:
        UsageError: they are no such maps.
    """
    given = _as_tensor(maps)
    if given is None or not _are_maps(given, len(images)):
        raise UsageError(_no_maps(maps, images, name))
    numbers = at_least_float32(given).reshape(len(images), 1, *given.shape[-2:])
    finite = torch.isfinite(numbers).flatten(1).all(1)
    positive = torch.where(finite[:, None, None, None], numbers, 0).clamp(min=0)
    # Divided before they become float32 as well, which does not hold all numbers of float64.
    small, size = _divided(positive).float().to(images.device), image_size(images)
    is_finer = any(own > wanted for own, wanted in zip(image_size(small), size, strict=True))
    resized = F.interpolate(small, size, mode="bilinear", align_corners=False, antialias=is_finer)
    height, width = (min(edges) for edges in zip(image_size(small), size, strict=True))
    return _divided(resized.clamp(min=0)).squeeze(1), (height, width)


def _as_tensor(maps: Any) -> Tensor | None:
    if isinstance(maps, np.ndarray) and maps.dtype.kind in "fiub":
        return torch.from_numpy(
            np.array(maps, dtype=maps.dtype.newbyteorder("="))
        )  # a copy, as torch has no steps back
    return maps.detach() if isinstance(maps, Tensor) and not maps.is_complex() else None


def _are_maps(given: Tensor, count: int) -> bool:
    has_form = given.ndim == 3 or (given.ndim == 4 and given.shape[1] == 1)
    return has_form and len(given) == count and given.numel() > 0


def _no_maps(maps: Any, images: Tensor, name: str) -> str:
    is_array = isinstance(maps, np.ndarray)
    what = f"array{tuple(maps.shape)} of {maps.dtype}" if is_array else describe(maps)
    count = len(images)
    message = (
        f"explainer={name} returned {what} for {describe(images)}; expected is one map for each image, "
        f"({count}, h, w) or ({count}, 1, h, w), a tensor or an array of real numbers."
    )
    shape = tuple(getattr(maps, "shape", ()))
    if len(shape) == 4 and shape[0] == count and shape[1] > 1:
        message += " Where there is a map for each channel, return their sum: maps.sum(1)."
    return message


def _divided(maps: Tensor) -> Tensor:
    """Maps (N, 1, h, w) that are not negative, by their maxima; zero ones stay so."""
    highest = maps.amax((2, 3), keepdim=True)
    return torch.where(highest > 0, maps / torch.where(highest > 0, highest, 1), 0)
