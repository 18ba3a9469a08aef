"""The fixed samples of one training run, explained again and again."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple, Protocol, TypeVar

import lightning as L
import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError, attempt, raised_by_us, tell
from gfi_lightning.guard import preserved_parameters, preserved_state, undisturbed, unnoticed
from gfi_lightning.inversion.guided import GuidedFeatureInversion
from gfi_lightning.inversion.layers import LayerLike, as_layers
from gfi_lightning.inversion.results import Explanation, Inversion
from gfi_lightning.inversion.scores import describe
from gfi_lightning.logs import logger
from gfi_lightning.metrics.drift import heatmap_drift
from gfi_lightning.recording.images import denormalized, in_unit_range, stretched
from gfi_lightning.recording.record import Record, SampleRecord, sample_records
from gfi_lightning.training import internals
from gfi_lightning.training.ranks import Ranks
from gfi_lightning.training.samples import (
    Samples,
    SplitBatch,
    as_indices,
    as_names,
    attribute_of_dataset,
    class_indices,
    find_normalization,
    is_batch,
    multi_hot,
    read_samples,
    split_batch,
)

TargetChoice = Callable[[Tensor, Tensor | None], Tensor]
Targets = str | int | list[int] | TargetChoice
Explanations = list[tuple[list[int], Explanation]]  # each with the numbers of the samples that it is about
T = TypeVar("T")

_NO_ROOM = "Not even one image at a time fits beside the training: a smaller batch_size leaves room for it."
_OF_LABELS = ("label", "contrast", "present")  # targets that are taken from class indices
_MULTI_HOT = (
    ", but labels of several classes at once",
    "targets='present', and score='sigmoid' where an image may have several, to explain each class that is present",
)
# What a forward raises that expects something else than a tensor of images.
_WRONG_CALL = (TypeError, IndexError, KeyError, AttributeError, NotImplementedError)


class Warn(Protocol):
    """How the user is told something."""

    def __call__(self, message: str, cause: str | None = None) -> None:
        """Say it, once per cause; None: once per message."""


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
    explainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One rank's samples by their numbers, and the base layer's resolution (h, w)."""

    grid: tuple[int, int]
    samples: dict[int, SampleRecord]


class Session:
    """Explains the same samples whenever it is asked to, each rank of a distributed training its share of them.

    Args:
        settings: what the user asked for.
        loader: the validation loader; None where there is none, or where a ready batch was given.
        restored: :meth:`state` of the session that a checkpoint resumes, or an empty dict.
        warn: says something once.
        ranks: that take part.

    Raises:
        UsageError: there is nothing to read, or the samples do not exist.
    """

    def __init__(self, settings: Settings, loader: Any, restored: dict[str, Any], warn: Warn, ranks: Ranks) -> None:
        dataset = getattr(loader, "dataset", None)
        self._settings = settings
        self._warn = warn
        self.ranks = ranks
        self._samples = ranks.from_first(lambda: _read(settings, loader, restored, warn))
        self._normalization = settings.normalization or find_normalization(dataset)
        names = attribute_of_dataset(dataset, "classes") if settings.class_names is None else settings.class_names
        self.class_names = as_names(names)
        self._layer: LayerLike | Sequence[LayerLike] | None = settings.layer or restored.get("layer")
        self._chunk_size: int | None = settings.explainer["chunk_size"]
        self._writes_parameters = True
        self._said_own_range = self._said_present = False
        same_samples = restored.get("indices", []) == self._samples.indices
        # The mean colours of the samples, to notice when the data has changed under the same indices.
        self._colors: Tensor | None = restored.get("colors") if same_samples else None
        self._last_maps: Tensor | None = restored.get("last_maps") if same_samples else None

    def state(self) -> dict[str, Any]:
        """What a resumed session needs: tensors and plain types, which load with ``weights_only``."""
        return {
            "indices": self._samples.indices,
            "dataset_size": self._samples.dataset_size,
            "layer": _names_only(self._layer),
            "colors": self._colors,
            "last_maps": self._last_maps,
        }

    def explain(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Seen:
        """Explain the samples with the weights as they are; the module is left as it was found.

        Returns:
            What was seen on this rank.

        Raises:
            UsageError: the batch, the layers, the targets or the class names cannot be used.
        """
        with ExitStack() as stack:
            self.ranks.agree(lambda: self._enter(stack, trainer, pl_module))
            batch = self.ranks.agree(lambda: self._prepare(trainer, pl_module))
            numbers = self.ranks.share(len(batch.images))
            share = _Share(
                explainer=GuidedFeatureInversion(
                    pl_module, self._layer, **self._settings.explainer | {"chunk_size": self._chunk_size}
                ),
                context=trainer.precision_plugin.forward_context,
                settings=self._settings,
                given=describe(self._samples.batch),
                batch=batch.rows(numbers),
            )
            try:
                inversion, explanations = self.ranks.agree(lambda: self._within_memory(share, share.explain_targets))
            finally:
                self._layer = self._layer or share.explainer.layer
            explanations += self._explain_further(share, inversion)
        return self.ranks.agree(lambda: self._seen(share, numbers, inversion, explanations))

    def _explain_further(self, share: "_Share", inversion: Inversion) -> Explanations:
        """Stage 2 for the targets that not every sample has, with as many passes on every rank."""
        turns = share.further_targets(inversion)
        count = max(self.ranks.everyones(len(turns)))
        turns += [_Turn.of_nobody(share.batch.images)] * (count - len(turns))
        return [one for turn in turns for one in self._explain_turn(share, inversion, turn)]

    def _explain_turn(self, share: "_Share", inversion: Inversion, turn: "_Turn") -> Explanations:
        own = [bool(part.any()) for part in turn.chosen.split(inversion.chunk_sizes)]
        busy = _busy_anywhere(self.ranks.everyones(own), self.ranks.rank)
        return self.ranks.agree(lambda: self._within_memory(share, lambda: share.explain_turn(inversion, turn, busy)))

    def _enter(self, stack: ExitStack, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with attempt("set the model aside", "Its state is copied, to be put back: that takes memory for its buffers."):
            stack.enter_context(unnoticed(pl_module))
            # A large model whose forward wrote into no parameter in the first run needs no copy of them later.
            written: list[nn.Parameter] = []
            stack.callback(lambda: setattr(self, "_writes_parameters", bool(written)))
            written = stack.enter_context(preserved_parameters(pl_module, compare=self._writes_parameters))
            stack.enter_context(undisturbed(pl_module))
        stack.enter_context(internals.validating(trainer))
        stack.enter_context(internals.not_logging(trainer, pl_module))

    def _seen(self, share: "_Share", numbers: list[int], inversion: Inversion, explanations: Explanations) -> Seen:
        images, labels, present, _ = share.batch
        samples = sample_records(self._displayable(images), labels, present, inversion, explanations)
        return Seen(inversion.grid, {n: one for n, one in zip(numbers, samples, strict=True) if self.ranks.keeps(n)})

    def record(self, seen: list[Seen], step: int) -> Record:
        """What was seen on all ranks together."""
        by_number = {number: sample for part in seen for number, sample in part.samples.items()}
        record = Record(step, seen[0].grid, [by_number[number] for number in sorted(by_number)])
        self._tell_of_not_finite(record)
        return record

    def scalars(self, record: Record) -> dict[str, float]:
        """The curves of a run: means over the samples. Drift is there from the second run on."""
        scalars = record.scalars()
        maps = record.maps()
        if self._last_maps is not None and self._last_maps.shape == maps.shape:
            scalars["drift"] = float(heatmap_drift(maps, self._last_maps).mean())
        self._last_maps = maps
        return scalars

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> "_Batch":
        """All samples, on the model's device."""
        with attempt("bring the samples to the model", "They went through its transfer hooks, as for a validation."):
            # A copy, because the module's transfer hooks may work in place.
            batch = internals.to_device(trainer, pl_module, copy.deepcopy(self._samples.batch))
        images, given = split_batch(batch, self._settings.batch)
        labels, present = class_indices(given, len(images)), multi_hot(given, len(images))
        targets = self._understood_targets(labels, present, describe(batch))
        self._notice_changes(images)
        self._check_normalization(images)
        labels, present = (None if one is None else one.to(images.device) for one in (labels, present))
        return _Batch(images, labels, present, targets)

    def _understood_targets(self, labels: Tensor | None, present: Tensor | None, batch: str) -> Targets:
        """What is explained, from what was asked for and the kind of labels that there are."""
        targets, score = self._settings.targets, self._settings.explainer["score"]
        if targets == "label" and present is not None and score == "sigmoid":
            targets = "present"
            if not self._said_present:
                self._said_present = True
                logger.info("The labels are multi-hot: each class that is present is explained (targets='present').")
        elif targets == "label" and labels is None:
            what, advice = ("", "targets= or batch= for others") if present is None else _MULTI_HOT
            self._warn(
                f"GFICallback found no class indices in the validation batch, which is {batch}{what}: "
                f"it explains the predicted classes. Give {advice}."
            )
        elif targets == "present" and labels is None and present is None:
            raise UsageError(
                f"targets='present' needs labels that are multi-hot, (N, classes), 0 or 1 each, and the validation "
                f"batch is {batch}: give batch= (batch → images, labels), or other targets=."
            )
        if targets == "present" and score == "softmax" and present is not None and (present.sum(1) > 1).any():
            self._warn(
                "GFICallback explains several present classes of an image by score='softmax', of which they share 1: "
                "give score='sigmoid' if the model was trained to tell each by itself."
            )
        return targets

    def _within_memory(self, share: "_Share", work: Callable[[], T]) -> T:
        """Do it, if need be again with fewer images at once; the next run starts with as few."""
        before = share.chunk_size
        while True:
            try:
                result = work()
            except Exception as error:
                if not internals.is_out_of_memory(error) or self.ranks.sharded:  # the others are in mid-pass
                    raise
                if share.chunk_size == 1:
                    tell(error, "explain the model", _NO_ROOM)
                    raise
            else:
                break
            internals.free_memory()  # not above, where the error still holds on to what it failed with
            share.explainer.chunk_size = self._chunk_size = share.chunk_size // 2
        if share.chunk_size < before:
            self._warn(
                f"GFICallback ran out of memory with {before} images at once, and goes on with {share.chunk_size}. "
                f"GFICallback(chunk_size={share.chunk_size}) starts with that."
            )
        return result

    def _tell_of_not_finite(self, record: Record) -> None:
        scores = [sample.predicted_score for sample in record.samples]
        broken = [number for number, score in enumerate(scores) if score is not None and not math.isfinite(score)]
        if broken:
            self._warn(
                f"GFICallback saw outputs of the model that are not finite at step {record.step}, for samples "
                f"{broken}: their maps are empty. A lower learning rate or gradient_clip_val may help; "
                "Trainer(detect_anomaly=True) shows where it begins.",
                "not finite",
            )

    def _check_normalization(self, images: Tensor) -> None:
        given = self._settings.normalization
        if given is not None and len(given[0]) not in (1, images.shape[1]):
            raise UsageError(
                f"mean={list(given[0])} has {len(given[0])} numbers, but the images have {images.shape[1]} channels: "
                "give one number per channel, or one for all."
            )

    def _notice_changes(self, images: Tensor) -> None:
        colors = images.detach().float().mean((2, 3)).cpu()
        if self._colors is None:
            self._colors = colors
        elif self._colors.shape != colors.shape or not torch.allclose(self._colors, colors, rtol=1e-2, atol=1e-2):
            self._warn(
                "The images at GFICallback's sample indices are not those of the checkpoint: the data set or its "
                "transform has changed, and pictures from before show others."
            )
            self._colors, self._last_maps = colors, None

    def _displayable(self, images: Tensor) -> Tensor:
        if self._normalization is not None and len(self._normalization[0]) in (1, images.shape[1]):
            return denormalized(images, *self._normalization)
        if in_unit_range(images):
            return images.float().cpu()
        if not self._said_own_range:
            self._said_own_range = True
            logger.info(
                "No Normalize step was found in the data set's transform: each picture is shown by its own range. "
                "Give GFICallback(mean=..., std=...) for true colours."
            )
        return stretched(images)


class _Batch(NamedTuple):
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

    def rows(self, numbers: list[int]) -> "_Batch":
        """Some of the samples."""
        labels, present = (None if one is None else one[numbers] for one in (self.labels, self.present))
        return _Batch(self.images[numbers], labels, present, self.targets)


class _Turn(NamedTuple):
    """One more target for some of the samples: chosen (N,), bool, and targets (N,), which count where chosen."""

    chosen: Tensor
    targets: Tensor

    @classmethod
    def of_nobody(cls, images: Tensor) -> "_Turn":
        """For the sake of ranks that have one."""
        zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return cls(zeros.bool(), zeros)


@dataclass
class _Share:
    """One rank's samples in one run.

    Attributes:
        explainer: of the module.
        context: of the precision in which forward passes are made.
        settings: what the user asked for.
        given: what the samples came in, in words.
        batch: the n samples.
    """

    explainer: GuidedFeatureInversion
    context: Callable[[], AbstractContextManager[Any]]
    settings: Settings
    given: str
    batch: _Batch

    @property
    def chunk_size(self) -> int:
        """Images that are optimised at once."""
        return min(self.explainer.chunk_size_for(self.batch.images), len(self.batch.images))

    def explain_targets(self) -> tuple[Inversion, Explanations]:
        """Stage 1, and stage 2 for the targets that every sample has."""
        with self._explaining():
            inversion = self._invert()
            self._check_classes(inversion)
            targets, against = self._first_targets(inversion)
            explanation = self.explainer.refine(inversion, targets, against)
            return inversion, [(list(range(len(self.batch.images))), explanation)]

    def further_targets(self, inversion: Inversion) -> list[_Turn]:
        """The targets that not every sample has: the prediction, where it is not the label; or more present classes."""
        if self.batch.targets == "present":
            present = self._present(inversion)
            most = max(map(len, present))
            return [self._turn([classes[number : number + 1] for classes in present]) for number in range(1, most)]
        if self.batch.targets != "label" or self.batch.labels is None or inversion.predicted is None:
            return []
        return [_Turn(inversion.predicted != self.batch.labels, inversion.predicted)]

    def _turn(self, classes: list[list[int]]) -> _Turn:
        """From the class of each sample that has one."""
        device = self.batch.images.device
        chosen = torch.tensor([len(one) > 0 for one in classes], device=device)
        return _Turn(chosen, torch.tensor([one[0] if one else 0 for one in classes], device=device))

    def explain_turn(self, inversion: Inversion, turn: _Turn, busy: list[bool]) -> Explanations:
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
            explanation = self.explainer.refine(inversion.select(chosen), turn.targets[chosen])
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
            if inversion.predicted is None or (
                callable(self.settings.explainer["score"]) and inversion.logits().shape[1] < 2
            ):
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

    def _invert(self) -> Inversion:
        try:
            return self.explainer.invert(self.batch.images)
        except _WRONG_CALL as error:
            own = [self.settings.explainer[name] for name in ("forward", "background", "score")]
            if any(map(callable, own)) or raised_by_us(error):  # the user's own code, or ours, may be what failed
                raise
            raise UsageError(
                f"forward() was called with {describe(self.batch.images)}, the images in a validation batch, which is "
                f"{self.given}, and failed with {type(error).__name__}: {error}. "
                "Give forward= (module, images → logits), or batch= (batch → images, labels)."
            ) from error

    def _check_classes(self, inversion: Inversion) -> None:
        classes = 0 if inversion.predicted is None else inversion.logits().shape[1]
        self._check_columns(max(classes, 2) if classes else 0)
        if classes < 2:  # not known, or a single logit
            return
        names = as_names(self.settings.class_names)
        if names is not None and len(names) < classes:
            raise UsageError(
                f"class_names has {len(names)} names, but the model has {classes} classes: give a name for each."
            )
        labels = self.batch.labels
        if labels is not None and self.batch.targets in _OF_LABELS:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise UsageError(
                    f"The validation batch's labels reach from {low} to {high}, but the model has {classes} classes, "
                    f"0 to {classes - 1}: give targets='predicted', or batch= (batch → images, labels) for others."
                )

    def _check_columns(self, classes: int) -> None:
        present = self.batch.present
        if classes and present is not None and present.shape[1] != classes and self.batch.targets == "present":
            raise UsageError(
                f"The validation batch's labels are for {present.shape[1]} classes each, but the model has {classes}: "
                "give batch= (batch → images, labels) for others, or other targets=."
            )


def _names_only(layer: LayerLike | Sequence[LayerLike] | None) -> str | list[str] | None:
    """A layer's name, or several; None where it is not known by name."""
    names = [] if layer is None else [name for name in as_layers(layer) if isinstance(name, str)]
    return names[0] if isinstance(layer, str) else names or None


def _busy_anywhere(flags: list[list[bool]], rank: int) -> list[bool]:
    """The chunks of this rank for which any rank makes a pass; a rank that ran out of memory has more of them."""
    return [any(other[chunk] for other in flags if chunk < len(other)) for chunk in range(len(flags[rank]))]


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


def _read(settings: Settings, loader: Any, restored: dict[str, Any], warn: Warn) -> Samples:
    if is_batch(settings.samples):
        return Samples(settings.samples)
    if loader is None:
        raise UsageError(
            "GFICallback found no validation data to explain: give the Trainer a validation loader, "
            "or give samples=(images, labels)."
        )
    indices = as_indices(settings.samples)
    if indices is None:
        indices = _restored_indices(loader, restored, warn)
    advice = "Give samples=: indices of items that can be read, or a ready batch (images, labels)."
    readers = [getattr(loader, name, None) for name in ("dataset", "collate_fn")]
    # Not their tensors, which may be the whole of the data; reading does not change those.
    with preserved_state(readers, tensors=False), attempt("read its samples", advice):
        samples = read_samples(loader, settings.num_samples, indices)
    size = samples.dataset_size
    if indices is None and size is not None and size < settings.num_samples:
        warn(f"GFICallback(num_samples={settings.num_samples}) explains only {size}: the validation set has no more.")
    return samples


def _restored_indices(loader: Any, restored: dict[str, Any], warn: Warn) -> list[int] | None:
    before, dataset = restored.get("dataset_size"), getattr(loader, "dataset", None)
    size = len(dataset) if isinstance(dataset, Sized) else "an unknown number of"
    if before is None or before == size:
        return restored.get("indices")
    warn(
        f"The validation set has {size} items, and had {before} when the checkpoint was written: "
        "GFICallback chooses its samples anew, and pictures from before show others."
    )
    return None
