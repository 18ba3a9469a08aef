"""What one rank explains in one run: its samples, their targets, and the passes through both stages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError, attempt, raised_by_us
from gfi_lightning.inversion.guided import GuidedFeatureInversion, as_targets
from gfi_lightning.inversion.layers import LayerLike
from gfi_lightning.inversion.recipes import find_recipe
from gfi_lightning.inversion.results import Explanation, Inversion
from gfi_lightning.inversion.scores import describe
from gfi_lightning.inversion.start import Start
from gfi_lightning.training.batches import SplitBatch
from gfi_lightning.training.foreign import Foreign, inner_name
from gfi_lightning.training.memory import Memory
from gfi_lightning.training.regions import Regions
from gfi_lightning.training.samples import as_names

TargetChoice = Callable[[Tensor, Tensor | None], Tensor]
Targets = str | int | list[int] | TargetChoice
Explanations = list[tuple[list[int], Explanation]]  # each with the numbers of the samples that it is about

FOR_A_REGRESSION = "score= (output, targets → one number each) for a regression"
_OF_ANYTHING = ("label", "predicted")
_OF_LABELS = ("label", "contrast", "present")  # targets that are taken from class indices
_NUDGE = 1e-6  # of an image's range: as much as rounding may change
# What a forward raises that expects something else than a tensor of images.
_WRONG_CALL = (TypeError, IndexError, KeyError, AttributeError, NotImplementedError)


@dataclass(frozen=True)
class Settings:
    """What the user asked for; see :class:`~gfi_lightning.GFICallback`."""

    num_samples: int
    samples: Any
    targets: Targets
    layer: LayerLike | Sequence[LayerLike] | None
    class_names: Sequence[str] | None
    normalization: tuple[Sequence[float], Sequence[float]] | None
    batch: SplitBatch | None
    regions: Regions | None = None
    dataloader_idx: int = 0
    explainer: dict[str, Any] = field(default_factory=dict)
    foreign: Foreign | None = None
    warm_start: bool = False

    def scored_by(self, score: str) -> "Settings":
        """The same by another score."""
        return replace(self, explainer=self.explainer | {"score": score})

    def method(self) -> dict[str, str]:
        """What maps depend on beside the model, the images and the layer: by argument, in words to compare.

        Callables are known by their names alone.
        """
        names = ["background", "score", "forward"]
        given: dict[str, Any] = {"explainer": None if self.foreign is None else self.foreign.name}
        if self.foreign is None:  # on the rest no other method depends
            names.append("inversion_layer")
            given |= {"recipe": vars(find_recipe(self.explainer["recipe"])), "warm_start": self.warm_start}
        given |= {name: self.explainer[name] for name in names}
        if given["score"] is None:  # the labels will tell
            del given["score"]
        return {name: _in_words(value) for name, value in (given | {"targets": self.targets}).items()}


def _in_words(value: Any) -> str:
    """The same in every process, unlike the repr of a function, and of whatever type a number is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_in_words(one)}" for name, one in value.items())
    if callable(value):
        return inner_name(value)
    if isinstance(value, Real):
        return repr(float(value))
    return value if isinstance(value, str) else "none" if value is None else ", ".join(map(_in_words, value))


class Batch(NamedTuple):
    """Samples, on the module's device.

    Attributes:
        images: (N, C, H, W).
        labels: class indices (N,), or None.
        present: which classes are, (N, classes), bool; or None.
        targets: which of them are explained, as it is understood for this kind of labels.
    """

    images: Tensor
    labels: Tensor | None
    present: Tensor | None
    targets: Targets

    def rows(self, numbers: list[int]) -> "Batch":
        """Some of the samples."""
        labels, present = (None if one is None else one[numbers] for one in (self.labels, self.present))
        return Batch(self.images[numbers], labels, present, self.targets)


class Turn(NamedTuple):
    """One more target for some of the samples: chosen (N,), bool, and targets (N,), which count where chosen."""

    chosen: Tensor
    targets: Tensor

    @classmethod
    def of_nobody(cls, images: Tensor) -> "Turn":
        """For the sake of ranks that have one."""
        zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return cls(zeros.bool(), zeros)


@dataclass
class Share:
    """One rank's samples in one run.

    Attributes:
        explainer: of the module.
        context: of the precision in which forward passes are made.
        settings: what the user asked for.
        given: what the samples came in, in words.
        batch: the n samples.
        memory: what the previous run has found for them; None: they start cold.
    """

    explainer: GuidedFeatureInversion
    context: Callable[[], AbstractContextManager[Any]]
    settings: Settings
    given: str
    batch: Batch
    memory: Memory | None = None

    @property
    def chunk_size(self) -> int:
        """Images that are optimised at once."""
        return min(self.explainer.capacity.chunk_size_for(self.batch.images), len(self.batch.images))

    def first_passes(self) -> int:
        """Forward passes of stage 1, and of stage 2 for the targets that every sample has.

        As if that were one, where a function chooses them. There are fewer where what the previous run has found
        makes some needless.
        """
        targets = self.settings.targets
        return sum(self.explainer.passes(self.batch.images, len(targets) if isinstance(targets, list) else 1))

    def further_passes(self, inversion: Inversion, turns: Sequence["Turn"]) -> int:
        """Forward passes of stage 2 for more targets."""
        chunks = [[int(part.sum()) for part in turn.chosen.split(inversion.chunk_sizes)] for turn in turns]
        passes = self.explainer.refining_passes
        return sum(passes(self.batch.images[: sum(counts)], counts) for counts in chunks if sum(counts) > 0)

    def explain_targets(self) -> tuple[Inversion, Explanations]:
        """Stage 1, and stage 2 for the targets that every sample has."""
        with self._explaining():
            inversion = self._invert()
            self._check_classes(inversion)
            if inversion.predicted is None and self.batch.targets in _OF_ANYTHING and inversion.holds_numbers():
                # A regression has no classes, and whole numbers for labels are none: its number is all there is.
                self.batch = self.batch._replace(labels=None, present=None, targets=0)
            wanted, against = self._first_targets(inversion)
            targets, numbers = as_targets(wanted, inversion.foreground), list(range(len(self.batch.images)))
            explanation = self.explainer.refine(inversion, targets, against, self._start(numbers, targets, against))
            return inversion, [(numbers, explanation)]

    def explain_nudged(self, explanation: Explanation) -> Explanation:
        """The same once more, of images that are changed by no more than rounding may: what differs is arithmetic's."""
        with self._explaining():
            inversion = self.explainer.invert(nudged(self.batch.images))
            return self.explainer.refine(inversion, explanation.targets, explanation.against)

    def further_targets(self, inversion: Inversion) -> list[Turn]:
        """The targets that not every sample has: the prediction, where it is not the label; or more present classes."""
        if self.batch.targets == "present":
            present = self._present(inversion)
            most = max(map(len, present))
            return [self._turn([classes[number : number + 1] for classes in present]) for number in range(1, most)]
        if self.batch.targets != "label" or self.batch.labels is None or inversion.predicted is None:
            return []
        return [Turn(inversion.predicted != self.batch.labels, inversion.predicted)]

    def _turn(self, classes: list[list[int]]) -> Turn:
        """From the class of each sample that has one."""
        device = self.batch.images.device
        chosen = torch.tensor([len(one) > 0 for one in classes], device=device)
        return Turn(chosen, torch.tensor([one[0] if one else 0 for one in classes], device=device))

    def explain_turn(self, inversion: Inversion, turn: Turn, busy: list[bool]) -> Explanations:
        """Stage 2 for one more target.

        On its own, so that the first targets' maps are always computed in the same chunks: in float32 maps of other
        chunks differ by rounding, which drift would show.

        Args:
            inversion: of stage 1.
            turn: the target, and who has it.
            busy: the chunks that a pass is made for, where nobody has the target one that is thrown away.
        """
        chosen = turn.chosen.clone()
        for part, is_busy in zip(chosen.split(inversion.chunk_sizes), busy, strict=True):
            part[0] |= is_busy and not part.any()
        if not chosen.any():
            return []
        with self._explaining():
            numbers, targets = chosen.nonzero().flatten().tolist(), turn.targets[chosen]
            start = self._start(numbers, targets, None)
            explanation = self.explainer.refine(inversion.select(chosen), targets, start=start)
        if not turn.chosen.any():
            return []
        return [(turn.chosen.nonzero().flatten().tolist(), explanation.select(turn.chosen[chosen]))]

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        advice = "Give forward= (module, images) → output to call the model otherwise, or another layer=."
        with attempt("explain the model", advice), self.context():
            yield

    def _first_targets(self, inversion: Inversion) -> tuple[Tensor | int, Tensor | None]:
        """What is explained of every sample, and what that is contrasted with."""
        _, labels, present, targets = self.batch
        if targets == "contrast":
            if inversion.predicted is None:
                raise UsageError(
                    "targets='contrast' needs logits of at least two classes, which the model's output does not have: "
                    "give class indices, or a callable, as targets=."
                )
            return contrasted(inversion, labels)
        if targets == "present":
            return self._turn(self._present(inversion)).targets, None
        return choose_targets(targets, inversion, present if labels is None else labels), None

    def _present(self, inversion: Inversion) -> list[list[int]]:
        """Each sample's present classes; where there are none, its most probable one."""
        if self.batch.labels is not None:
            return [[label] for label in self.batch.labels.tolist()]
        assert self.batch.present is not None
        present = [row.nonzero().flatten().tolist() for row in self.batch.present]
        if all(present):
            return present
        if inversion.predicted is None:
            raise UsageError(
                "No class is present in some samples, and the model's output has no logits to tell the most probable: "
                "give samples= with one, or targets= by a callable."
            )
        return [row or [predicted] for row, predicted in zip(present, inversion.predicted.tolist(), strict=True)]

    def _start(self, numbers: list[int], targets: Tensor, against: Tensor | None) -> Start | None:
        return None if self.memory is None else self.memory.of_targets(numbers, targets, against)

    def _invert(self) -> Inversion:
        start = None if self.memory is None else self.memory.of_images()
        try:
            return self.explainer.invert(self.batch.images, start)
        except _WRONG_CALL as error:
            own = [self.settings.explainer[name] for name in ("forward", "background", "score")]
            if any(map(callable, own)) or raised_by_us(error):  # the user's own code, or ours, may be what failed
                raise
            raise UsageError(
                f"forward() was called with {describe(self.batch.images)}, the images in a validation batch, which is "
                f"{self.given}, and failed with {type(error).__name__}: {error}. "
                "Give forward= (module, images → logits), or batch= (batch → images, labels)."
            ) from error

    def classes(self, inversion: Inversion) -> int:
        """The number of classes, of which a single logit stands for two; 0 where it is not known."""
        return 0 if inversion.predicted is None else max(inversion.logits().shape[1], 2)

    def _check_classes(self, inversion: Inversion) -> None:
        classes = self.classes(inversion)
        self._check_columns(classes)
        if not classes:
            return
        is_single = inversion.logits().shape[1] == 1
        names = as_names(self.settings.class_names)
        if names is not None and len(names) < classes and not is_single:
            raise UsageError(
                f"class_names has {len(names)} names, but the model has {classes} classes: give a name for each."
            )
        labels = self.batch.labels
        if labels is not None and self.batch.targets in _OF_LABELS:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                by, of_amounts = (" by its single logit", f", {FOR_A_REGRESSION}") if is_single else ("", "")
                raise UsageError(
                    f"The validation batch's labels reach from {low} to {high}, but the model has {classes} classes"
                    f"{by}, 0 to {classes - 1}: give targets='predicted'{of_amounts}, or batch= (batch → images, "
                    "labels) for others."
                )

    def _check_columns(self, classes: int) -> None:
        present = self.batch.present
        if classes and present is not None and present.shape[1] != classes and self.batch.targets == "present":
            raise UsageError(
                f"The validation batch's labels are for {present.shape[1]} classes each, but the model has {classes}: "
                "give batch= (batch → images, labels) for others, or other targets=."
            )


def nudged(images: Tensor) -> Tensor:
    """Images (N, C, H, W), each value moved up or down, at random, by 1e-6 of its image's range.

    In a type that cannot tell so little apart, by the least that it can.
    """
    wide = images.detach().double() if images.device.type != "mps" else images.detach().float()
    low, high = wide.amin((1, 2, 3), keepdim=True), wide.amax((1, 2, 3), keepdim=True)
    step = (_NUDGE * (high - low)).clamp(min=0).maximum(torch.finfo(images.dtype).eps * wide.abs())
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (wide + step * signs.to(wide)).to(images.dtype)


def contrasted(inversion: Inversion, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Why the label rather than the prediction, or where they agree, why the prediction rather than the runner-up?

    Args:
        inversion: with predictions.
        labels: shape (N,); None: the prediction everywhere.

    Returns:
        Targets and what each is contrasted with, both of shape (N,).
    """
    assert inversion.predicted is not None
    targets = inversion.predicted if labels is None else labels
    return targets, torch.where(targets == inversion.predicted, inversion.runner_up(), inversion.predicted)


def choose_targets(targets: Targets, inversion: Inversion, labels: Tensor | None) -> Tensor | int:
    """Class indices for :meth:`GuidedFeatureInversion.refine`: one for all, (N,) or (N, T).

    Labels are class indices (N,), which classes are present (N, classes), or None.

    Raises:
        UsageError: the predicted class is asked for, and the model's output holds no logits.
    """
    if callable(targets):
        chosen = targets(inversion.logits(), labels)
        try:
            return torch.as_tensor(chosen)
        except (TypeError, ValueError, RuntimeError) as error:
            count = len(inversion.foreground)
            raise UsageError(
                f"targets= returned {describe(chosen)}; expected are class indices ({count},) or ({count}, T)."
            ) from error
    if targets == "label" and labels is not None and labels.ndim == 1:
        return labels
    if isinstance(targets, Integral):
        return int(targets)
    if isinstance(targets, str):
        if inversion.predicted is None:
            raise UsageError(f"targets={targets!r} needs labels or logits, and neither was found: give class indices.")
        return inversion.predicted
    return torch.as_tensor(targets).expand(len(inversion.foreground), -1)
