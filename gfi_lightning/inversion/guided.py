"""Guided feature inversion over a batch of images (Du, Liu, Song, Hu: KDD 2018, arXiv 1804.00506)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError, check_count
from gfi_lightning.guard import rng_memento, undisturbed
from gfi_lightning.inversion import stages
from gfi_lightning.inversion.backgrounds import Background, background_function
from gfi_lightning.inversion.capacity import Capacity
from gfi_lightning.inversion.depth import Depth, look
from gfi_lightning.inversion.layers import LayerLike, as_layers, image_size
from gfi_lightning.inversion.network import Forward, Network
from gfi_lightning.inversion.recipes import Recipe, find_recipe
from gfi_lightning.inversion.results import Chunk, Depths, Explanation, Inversion, concatenate
from gfi_lightning.inversion.scores import (
    Question,
    ScoreFunction,
    check_score,
    check_targets,
    describe,
    predicted_classes,
    target_scores,
)
from gfi_lightning.inversion.start import Start

Images = TypeVar("Images")  # a tensor, a tuple of one, or an array


class GuidedFeatureInversion:
    """Explains a classifier's decisions by the part of the image that its feature maps hold on to.

    A mask is built from the base layer's own feature maps, m = Σ_k ω_k A_k (equations 6 and 7), and only the
    channel weights ω ≥ 0 are optimised. (Under the default recipe, feature maps of the coarsest layer that speak
    against the target come into stage 2's sum with a minus, see ``Explanation.signs``.) Stage 1 (equation 8) finds
    the part of the image that yields the same features at the inversion layer; stage 2 (equation 9) refines it until
    it alone makes the target score high, and what is left makes it score low.

    Images are independent of each other, and the model is left as it was found: modes, parameters, gradients,
    buffers and random states. Autocast, as of Lightning's "bf16-mixed", is off meanwhile, because its rounding changes
    maps; a model that fails without it has it.

    Args:
        model: any classifier; it is explained in eval mode.
        layer: the base layer, whose feature maps make up the mask: a dotted module name or a module; or several,
            the coarsest last, for a mask that is the product of theirs. ``"relu:2"`` stands for the second call
            of a module that is called several times in a forward pass. None: the last feature map with more
            than one position before pooling or flattening, and, if the recipe asks for two, the last one of
            twice its resolution; found by the first forward pass and announced in one log line.
        inversion_layer: where stage 1 compares features; None: the (last) base layer.
        layers: several depths of the network, by name or as modules, from shallow to deep, to see what each still
            preserves: stage 1 is also done with each layer's own feature maps as mask and as what is compared.
            All are looked at in one forward pass; each then costs the steps of stage 1, which run up to its layer
            only. The other maps are those without ``layers``.
        recipe: "default", "paper", "release" or a :class:`Recipe`.
        background: what replaces the removed parts: "blur", "mean", "noise" or a callable from images
            (N, C, H, W) to images of the same shape. See :mod:`gfi_lightning.inversion.backgrounds`.
        score: "softmax", "sigmoid" (independent labels), or a callable from the model's output and the targets (N,)
            to one number each (N,), differentiable: for regression, segmentation and whatever else. A single logit
            is that of class 1, against class 0; where a model ends in softmax or sigmoid, what went in there are its
            logits. Targets are handed on to a callable as they are, and may also stand for something else than
            classes, say for regions. It is asked about some of the images at a time. Its unit counts: it should
            span several, as log-odds do, because the default recipe weighs it against the mask's area.
        chunk_size: images, or pairs of image and target, that are optimised at once; None: at most 32; on a CPU
            about 200,000 pixels, and of 128 × 128 px or more half of the images; on a GPU what takes no more memory
            than a training step with these images, and than half of what is free.
            In float32 the optimisation amplifies rounding, which differs between chunk sizes: compare maps
            that were made with the same one.
        generator: for the "noise" background; the same seed gives the same map.
        forward: how to call the model, (model, images) → output; None: ``model(images)``.
        on_pass: called before each forward pass, without arguments, such as ``tqdm(total=...).update``;
            :meth:`passes` tells how many there will be. What it raises ends the explanation.
        announce: told which base layer was found, in one line; None: that becomes a log line.

    Raises:
        UsageError: an argument is unknown or out of range.

    Example:
        >>> import torch
        >>> from torchvision.models import squeezenet1_1
        >>> gfi = GuidedFeatureInversion(squeezenet1_1(), layer="features.12")
        >>> explanation = gfi.explain(torch.rand(2, 3, 64, 64), torch.tensor([[3, 5], [3, 7]]))
        >>> explanation.heatmaps.shape
        torch.Size([2, 2, 64, 64])

        Other networks than classifiers say by ``score`` what is to be explained. What makes this number high, and
        what makes the network call the middle of the picture class 1?

        >>> regression = torch.nn.Sequential(squeezenet1_1(num_classes=1), torch.nn.Flatten(0))
        >>> gfi = GuidedFeatureInversion(regression, score=lambda output, targets: output)
        >>> gfi.explain(torch.rand(2, 3, 64, 64), 0).heatmaps.shape
        torch.Size([2, 64, 64])

        >>> def logit_in_the_middle(output, targets):  # (N, classes, H, W) and (N,)
        ...     return output[range(len(targets)), targets, 24:40, 24:40].mean((1, 2))
        >>> segmentation = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3, padding=1)
        ... )
        >>> gfi = GuidedFeatureInversion(segmentation, layer="1", score=logit_in_the_middle)
        >>> gfi.explain(torch.rand(2, 3, 64, 64), 1).heatmaps.shape
        torch.Size([2, 64, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: LayerLike | Sequence[LayerLike] | None = None,
        *,
        inversion_layer: LayerLike | None = None,
        layers: LayerLike | Sequence[LayerLike] | None = None,
        recipe: str | Recipe = "default",
        background: str | Background = "blur",
        score: str | ScoreFunction = "softmax",
        chunk_size: int | None = None,
        generator: torch.Generator | None = None,
        forward: Forward | None = None,
        on_pass: Callable[[], object] | None = None,
        announce: Callable[[str], object] | None = None,
    ) -> None:
        check_score(score)
        if chunk_size is not None:
            check_count("chunk_size", chunk_size)
        self.recipe = find_recipe(recipe)
        self.score = score
        needs_logits = not callable(score)
        self._network = Network(
            model, layer, inversion_layer, forward, self.recipe.resolutions, on_pass, announce, needs_logits
        )
        self._depths = [] if layers is None else [Depth(model, one, forward, on_pass) for one in as_layers(layers)]
        if layers is not None and not self._depths:
            raise UsageError(f"layers={layers!r} names no layer: give one or several, or None.")
        for depth in self._depths:
            depth.precision = self._network.precision
        self._background = background_function(background, generator)
        # Scores of the user's may need the output in one piece.
        self.capacity = Capacity(self._network, chunk_size, takes_channels_last=needs_logits)

    @property
    def layer(self) -> str | tuple[str, ...] | None:
        """The name of the base layer, or the names of several; None until the first explanation has found it."""
        names = tuple(map(str, self._network.base))
        return names[0] if len(names) == 1 else names or None

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the depths; empty where none were asked for."""
        return tuple(depth.name for depth in self._depths)

    def explain(
        self,
        images: Tensor,
        targets: Tensor | int | None = None,
        *,
        against: Tensor | int | None = None,
        start: Start | None = None,
    ) -> Explanation:
        """Explain why the model gives each image's targets their scores.

        Stage 1 is shared by all targets of an image.

        Args:
            images: shape (N, C, H, W), floating point, as the model sees them.
            targets: class indices, shape (N,), (N, T), or one for all; None: the predicted class.
            against: class indices of the same shape, or one for all: why the target *rather than this class*?
                Scores are then the target's probability if it were either of the two.
            start: what was found before for the same images and targets, from where both stages go on; None: from
                nothing. The maps depend on it. Depths always start from nothing.

        Returns:
            The maps and scores, on the images' device.

        Raises:
            UsageError: images, targets, layers or the model's output cannot be used.
        """
        _check_images(images)
        with self._at_work(images):  # once, not by each stage
            inversion = self.invert(images, start)
            if targets is None:
                targets = inversion.predicted
            if targets is None:
                raise UsageError(
                    "targets=None needs logits to predict the class from, and the model's output has none."
                )
            return self.refine(inversion, targets, against, start)

    def attribute(self, inputs: Images, target: Any = None) -> Images:
        """The heatmaps in Captum's calling convention, for its metrics, those of Quantus, and the like.

        Args:
            inputs: images (N, C, H, W) as the model sees them: a tensor, a tuple that holds nothing else, or a NumPy
                array, which is brought to the model's device and type.
            target: one class per image, (N,), a tensor, an array or a list of whole numbers, or one for all; None:
                the predicted class.

        Returns:
            Shape (N, 1, H, W), float32 in [0, 1], in the form of the inputs: a tensor, a tuple or an array.

        Raises:
            UsageError: as for :meth:`explain`, or there are several targets per image.
        """
        if isinstance(inputs, tuple):
            if len(inputs) != 1:
                raise UsageError(f"inputs are {describe(inputs)}; expected is a single tensor of images (N, C, H, W).")
            return cast(Images, (self.attribute(inputs[0], target),))
        if not isinstance(inputs, Tensor) and hasattr(inputs, "__array__"):
            like = next(self._network.model.parameters(), torch.empty(0))
            return cast(Images, self.attribute(torch.as_tensor(inputs).to(like), target).cpu().numpy())
        heatmaps = self.explain(cast(Tensor, inputs), target).heatmaps
        if heatmaps.ndim != 3:
            shape = tuple(heatmaps.shape[:-2])
            raise UsageError(f"attribute() takes one target per image, and target has shape {shape}.")
        return cast(Images, heatmaps[:, None])

    def invert(self, images: Tensor, start: Start | None = None) -> Inversion:
        """Stage 1 (equation 8): the smallest part of each image that yields the same features.

        Args:
            images: shape (N, C, H, W), floating point, as the model sees them.
            start: as in :meth:`explain`.

        Raises:
            UsageError: images, layers, the start or the model's output cannot be used.
        """
        _check_images(images)
        if start is not None:
            start.check_images(len(images))
        with self._at_work(images), self.capacity.heap_held(images):
            # A clone, as autograd refuses inference tensors, which Lightning's loops hand out.
            images = images.detach().clone()
            self._lay_out_for(images)
            put_back = rng_memento()
            try:
                return self._invert_all(images, start)
            except RuntimeError as error:
                if not (self.capacity.gains_by_channels_last(images) and "view size is not compatible" in str(error)):
                    raise
            self.capacity.takes_channels_last = False
            self._lay_out_for(images)
            put_back()
            return self._invert_all(images, start)

    def refine(
        self,
        inversion: Inversion,
        targets: Tensor | int,
        against: Tensor | int | None = None,
        start: Start | None = None,
    ) -> Explanation:
        """Stage 2 (equation 9): the part that makes each target's score high, and without which it is low.

        Args:
            inversion: what :meth:`invert` returned.
            targets: class indices, shape (N,), (N, T), or one for all.
            against: as in :meth:`explain`.
            start: likewise.

        Raises:
            UsageError: the targets or the start have another shape, or targets are none of the model's classes, or
                contrasted with themselves.
        """
        images = inversion.images
        with self._at_work(images), self.capacity.heap_held(images):
            return self._refine_all(inversion, images, targets, against, start)

    @contextmanager
    def _at_work(self, images: Tensor) -> Iterator[None]:
        with undisturbed(self._network.model), self._network.precision.full(images.device):
            yield

    def passes(self, images: Tensor, targets: int = 1) -> tuple[int, int]:
        """How many forward passes the two stages take.

        A few more may be needed in the first explanation, to find the layer, to get at a gradient or to tell a
        sigmoid, and for the evidence where base layers turn out to give patches; on a GPU more, of fewer images each,
        once it is known how much a pass keeps; twice as many in stage 2, where it turns out that kept and removed
        images together take too much memory; and fewer than that where a recipe has a tolerance, or where a start
        makes passes for the evidence needless.

        Args:
            images: shape (N, C, H, W).
            targets: of each image.
        """
        chunks = _parts(len(images), self.capacity.chunk_size_for(images))
        first = len(chunks) * (1 + self.recipe.inversion_steps * (1 + len(self._depths)))
        return first, self.refining_passes(images, [chunk * targets for chunk in chunks])

    def refining_passes(self, images: Tensor, pairs: Sequence[int]) -> int:
        """How many forward passes stage 2 takes for these images, (N, C, H, W).

        Args:
            images: of the inversion that is refined.
            pairs: of image and target, in each chunk of it.
        """
        size, most = self.capacity.chunk_size_for(images), self.capacity.most_at_once(images)
        parts = [part for chunk in pairs for part in _parts(chunk, size)]
        of_parts = [stages.passes_of(self.recipe, part, most, self._network.gives_patches) for part in parts]
        return sum(evidence + step * max(self.recipe.target_steps, 1) for evidence, step in of_parts)

    def _lay_out_for(self, images: Tensor) -> None:
        """Have the model get such images with the channels last, where they come so or it gains by that."""
        come_so = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        for network in (self._network, *self._depths):
            network.channels_last = come_so or self.capacity.gains_by_channels_last(images)

    def _invert_all(self, images: Tensor, start: Start | None) -> Inversion:
        background = self._background_of(images)
        if self.recipe.inversion_steps > 0 and self.capacity.asks_for_a_trial(images):
            self._invert(images[:2], background[:2], None)
        chunk_size = self.capacity.chunk_size_for(images)
        image_parts = images.split(chunk_size)
        starts = [None] * len(image_parts) if start is None else start.foreground.split(chunk_size)
        parts = zip(image_parts, background.split(chunk_size), starts, strict=True)
        chunks, depths = zip(*(self._invert(*part) for part in parts), strict=True)
        foreground = torch.cat(list(map(self._foreground, chunks)))
        predicted, score = self._predicted(chunks)
        return Inversion(foreground, predicted, score, chunks, Depths.joined(depths))

    def _refine_all(
        self,
        inversion: Inversion,
        images: Tensor,
        targets: Tensor | int,
        against: Tensor | int | None,
        start: Start | None,
    ) -> Explanation:
        targets = as_targets(targets, inversion.foreground)
        if start is not None:
            start.check_targets(targets)
        others = None if against is None else _as_others(against, targets)
        self._lay_out_for(inversion.chunks[0].images)
        size, most = self.capacity.chunk_size_for(images), self.capacity.most_at_once(images)
        pairs: list[dict[str, Tensor]] = []
        done = 0
        for chunk, wanted, unwanted in self._by_chunk(inversion, targets, others):
            for rows, question in self._questions(chunk, wanted, unwanted, size):
                count = len(question.targets)
                own = None if start is None else start.pairs(done, count)
                pairs.append(self._refine(chunk[rows], question, most, own))
                done += count
        fields = {name: part.reshape(targets.shape + part.shape[1:]) for name, part in concatenate(pairs).items()}
        return Explanation(
            foreground=inversion.foreground,
            targets=targets,
            against=others,
            depths=inversion.depths.stacked(),
            layers=tuple(inversion.depths.layers),
            grids=tuple(inversion.depths.grids),
            images=images,
            predicted=inversion.predicted,
            predicted_score=inversion.predicted_score,
            grid=self._grid(inversion),
            **fields,
        )

    def _background_of(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            background = self._background(images)
        if not isinstance(background, Tensor) or background.shape != images.shape:
            raise UsageError(
                f"background= returned {describe(background)}; expected are images of shape {tuple(images.shape)}."
            )
        return background.to(images)

    def _invert(self, images: Tensor, background: Tensor, start: Tensor | None) -> tuple[Chunk, Depths]:
        """Stage 1 of images that are optimised together, and of each depth."""
        own, seen = look(self._network, self._depths, images)
        chunk = stages.invert(self._network, self.recipe, images, background, own, start)
        heatmaps = [
            self._foreground(stages.invert(depth, self.recipe, images, background, one))
            for depth, one in zip(self._depths, seen, strict=True)
        ]
        return chunk, Depths(heatmaps, self.layers, [image_size(one.maps[0]) for one in seen])

    def _refine(self, chunk: Chunk, question: Question, most: int, start: Start | None) -> dict[str, Tensor]:
        """Stage 2 of pairs of image and target that are optimised together."""
        return stages.refine(self._network, self.recipe, self.score, chunk, question, most, start)

    def _grid(self, inversion: Inversion) -> tuple[int, int]:
        """The resolution that the maps come from."""
        return inversion.grid

    def _foreground(self, chunk: Chunk) -> Tensor:
        return stages.heatmaps_of(chunk, self.recipe, chunk.weights)

    def _by_chunk(
        self, inversion: Inversion, targets: Tensor, others: Tensor | None
    ) -> Iterator[tuple[Chunk, Tensor, Tensor | None]]:
        """Each chunk of n images with its targets, and what they are contrasted with: (n, T)."""
        columns, other_columns = (
            None if classes is None else classes.reshape(len(classes), -1).split(inversion.chunk_sizes)
            for classes in (targets, others)
        )
        assert columns is not None
        yield from zip(inversion.chunks, columns, other_columns or [None] * len(columns), strict=True)

    def _questions(
        self, chunk: Chunk, targets: Tensor, others: Tensor | None, size: int
    ) -> Iterator[tuple[Tensor | slice, Question]]:
        """Rows of the chunk and what is asked about each, so many at once; targets: (n, T)."""
        for argument, classes in (("targets", targets), ("against", others)):
            if classes is not None:
                check_targets(classes, chunk.output, self.score, argument)
        owners = torch.arange(len(targets), device=targets.device).repeat_interleave(targets.shape[1])
        every = Question(chunk.rows[owners], targets.flatten(), None if others is None else others.flatten())
        for begin in range(0, len(owners), size):
            pairs = slice(begin, begin + size)
            yield pairs if targets.shape[1] == 1 else owners[pairs], every[pairs]  # a slice copies nothing

    def _predicted(self, chunks: tuple[Chunk, ...]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        try:
            predicted = [predicted_classes(chunk.output, self.score) for chunk in chunks]
        except UsageError:
            if callable(self.score):  # which may need no logits
                return None, None
            raise
        pairs = zip(chunks, predicted, strict=True)
        scores = [target_scores(chunk.output, classes, self.score) for chunk, classes in pairs]
        return torch.cat(predicted), torch.cat(scores)


def _parts(whole: int, size: int) -> list[int]:
    """The sizes of what :meth:`torch.Tensor.split` gives."""
    return [min(size, whole - start) for start in range(0, whole, size)]


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise UsageError(
            f"images are {describe(images)}; expected is a floating point tensor (N, C, H, W), as the model sees it."
        )


def as_targets(targets: Tensor | int, foreground: Tensor) -> Tensor:
    """The targets of N images with foregrounds (N, H, W): a copy, (N,) or (N, T), int64.

    Raises:
        UsageError: they have another shape, or are no class indices.
    """
    given = _as_classes(targets, "targets", foreground.device)
    if given.ndim == 0:
        given = given.expand(len(foreground))
    if given.ndim not in (1, 2) or len(given) != len(foreground) or given.numel() == 0:
        raise UsageError(
            f"targets have shape {tuple(given.shape)} for {len(foreground)} images: "
            f"expected is ({len(foreground)},) or ({len(foreground)}, T)."
        )
    return given.long().clone()


def _as_others(against: Tensor | int, targets: Tensor) -> Tensor:
    given = _as_classes(against, "against", targets.device)
    if given.ndim == 0:
        given = given.expand_as(targets)
    if given.shape != targets.shape:
        raise UsageError(
            f"against has shape {tuple(given.shape)}, and the targets have shape {tuple(targets.shape)}: "
            "give one class to contrast with for each target."
        )
    if (given == targets).any():
        same = int(targets[given == targets][0])
        raise UsageError(f"A target is contrasted with itself: class {same} is in targets and, there, in against.")
    return given.long().clone()


def _as_classes(classes: Tensor | int, argument: str, device: torch.device) -> Tensor:
    given = torch.as_tensor(classes, device=device)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise UsageError(f"{argument} are {describe(given)}; expected are class indices (integers).")
    return given
