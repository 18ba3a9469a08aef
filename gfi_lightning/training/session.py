"""The fixed samples of one training run, explained again and again."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Protocol, TypeVar

import lightning as L
import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError, attempt, raised_by_us, tell
from gfi_lightning.guard import preserved_parameters, preserved_state, undisturbed, unnoticed
from gfi_lightning.inversion.guided import GuidedFeatureInversion
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
    read_samples,
    split_batch,
)

TargetChoice = Callable[[Tensor, Tensor | None], Tensor]
Targets = str | int | list[int] | TargetChoice
Explanations = list[tuple[list[int], Explanation]]  # each with the numbers of the samples that it is about
T = TypeVar("T")

_NO_ROOM = "Not even one image at a time fits beside the training: a smaller batch_size leaves room for it."
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
    layer: str | nn.Module | None
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
        self._layer: str | nn.Module | None = settings.layer or restored.get("layer")
        self._chunk_size: int | None = settings.explainer["chunk_size"]
        self._writes_parameters = True
        self._said_own_range = False
        same_samples = restored.get("indices", []) == self._samples.indices
        # The mean colours of the samples, to notice when the data has changed under the same indices.
        self._colors: Tensor | None = restored.get("colors") if same_samples else None
        self._last_maps: Tensor | None = restored.get("last_maps") if same_samples else None

    def state(self) -> dict[str, Any]:
        """What a resumed session needs: tensors and plain types, which load with ``weights_only``."""
        return {
            "indices": self._samples.indices,
            "dataset_size": self._samples.dataset_size,
            "layer": self._layer if isinstance(self._layer, str) else None,
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
            images, labels = self.ranks.agree(lambda: self._prepare(trainer, pl_module))
            numbers = self.ranks.share(len(images))
            share = _Share(
                explainer=GuidedFeatureInversion(
                    pl_module, self._layer, **self._settings.explainer | {"chunk_size": self._chunk_size}
                ),
                context=trainer.precision_plugin.forward_context,
                settings=self._settings,
                batch=describe(self._samples.batch),
                images=images[numbers],
                labels=None if labels is None else labels[numbers],
            )
            try:
                inversion, explanations = self.ranks.agree(lambda: self._within_memory(share, share.explain_targets))
            finally:
                self._layer = self._layer or share.explainer.layer
            if share.compares_prediction(inversion):
                busy = _busy_anywhere(self.ranks.everyones(share.mistaken_chunks(inversion)), self.ranks.rank)
                explanations += self.ranks.agree(
                    lambda: self._within_memory(share, lambda: share.explain_predicted(inversion, busy))
                )
        return self.ranks.agree(lambda: self._seen(share, numbers, inversion, explanations))

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
        samples = sample_records(self._displayable(share.images), share.labels, inversion, explanations)
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

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> tuple[Tensor, Tensor | None]:
        """Images and labels of all samples, on the model's device."""
        with attempt("bring the samples to the model", "They went through its transfer hooks, as for a validation."):
            # A copy, because the module's transfer hooks may work in place.
            batch = internals.to_device(trainer, pl_module, copy.deepcopy(self._samples.batch))
        images, given = split_batch(batch, self._settings.batch)
        labels = class_indices(given, len(images))
        if labels is None and self._settings.targets == "label":
            self._warn(
                f"GFICallback found no class indices in the validation batch, which is {describe(batch)}: "
                "it explains the predicted classes. Give targets= or batch= for others."
            )
        self._notice_changes(images)
        self._check_normalization(images)
        return images, None if labels is None else labels.to(images.device)

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


@dataclass
class _Share:
    """One rank's samples in one run.

    Attributes:
        explainer: of the module.
        context: of the precision in which forward passes are made.
        settings: what the user asked for.
        batch: what the samples came in, in words.
        images: (n, C, H, W), on the module's device.
        labels: (n,), or None.
    """

    explainer: GuidedFeatureInversion
    context: Callable[[], AbstractContextManager[Any]]
    settings: Settings
    batch: str
    images: Tensor
    labels: Tensor | None

    @property
    def chunk_size(self) -> int:
        """Images that are optimised at once."""
        return min(self.explainer.chunk_size_for(self.images), len(self.images))

    def explain_targets(self) -> tuple[Inversion, Explanations]:
        """Stage 1, and stage 2 for the targets that were asked for."""
        with self._explaining():
            inversion = self._invert()
            self._check_classes(inversion)
            targets = choose_targets(self.settings.targets, inversion, self.labels)
            return inversion, [(list(range(len(self.images))), self.explainer.refine(inversion, targets))]

    def compares_prediction(self, inversion: Inversion) -> bool:
        """Whether the predicted class is explained beside the label, where it is another."""
        return self.settings.targets == "label" and self.labels is not None and inversion.predicted is not None

    def mistaken_chunks(self, inversion: Inversion) -> list[bool]:
        """Which chunks hold an image whose prediction is not its label."""
        return [bool(part.any()) for part in self._mistaken(inversion).split(inversion.chunk_sizes)]

    def explain_predicted(self, inversion: Inversion, busy: list[bool]) -> Explanations:
        """Stage 2 for the predicted classes that are not the labels.

        On their own, so that the labels' maps are always computed in the same chunks: in float32 maps of other
        chunks differ by rounding, which drift would show.

        Args:
            inversion: of stage 1.
            busy: the chunks that a pass is made for, where nobody was mistaken one that is thrown away.
        """
        mistaken = self._mistaken(inversion)
        chosen = mistaken.clone()
        for part, is_busy in zip(chosen.split(inversion.chunk_sizes), busy, strict=True):
            part[0] |= is_busy and not part.any()
        if inversion.predicted is None or not chosen.any():
            return []
        with self._explaining():
            explanation = self.explainer.refine(inversion.select(chosen), inversion.predicted[chosen])
        return [(mistaken.nonzero().flatten().tolist(), explanation.select(mistaken[chosen]))]

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        advice = "Give forward= (module, images) → output to call the model otherwise, or another layer=."
        with attempt("explain the model", advice), self.context():
            yield

    def _mistaken(self, inversion: Inversion) -> Tensor:
        if inversion.predicted is None or self.labels is None:
            return torch.zeros(len(self.images), dtype=torch.bool)
        return inversion.predicted != self.labels

    def _invert(self) -> Inversion:
        try:
            return self.explainer.invert(self.images)
        except _WRONG_CALL as error:
            own = [self.settings.explainer[name] for name in ("forward", "background", "score")]
            if any(map(callable, own)) or raised_by_us(error):  # the user's own code, or ours, may be what failed
                raise
            raise UsageError(
                f"forward() was called with {describe(self.images)}, the images in a validation batch, which is "
                f"{self.batch}, and failed with {type(error).__name__}: {error}. "
                "Give forward= (module, images → logits), or batch= (batch → images, labels)."
            ) from error

    def _check_classes(self, inversion: Inversion) -> None:
        classes = 0 if inversion.predicted is None else inversion.logits().shape[1]
        if classes < 2:  # not known, or a single logit
            return
        names = as_names(self.settings.class_names)
        if names is not None and len(names) < classes:
            raise UsageError(
                f"class_names has {len(names)} names, but the model has {classes} classes: give a name for each."
            )
        if self.settings.targets == "label" and self.labels is not None:
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= classes:
                raise UsageError(
                    f"The validation batch's labels reach from {low} to {high}, but the model has {classes} classes, "
                    f"0 to {classes - 1}: give targets='predicted', or batch= (batch → images, labels) for others."
                )


def _busy_anywhere(flags: list[list[bool]], rank: int) -> list[bool]:
    """The chunks of this rank for which any rank makes a pass; a rank that ran out of memory has more of them."""
    return [any(other[chunk] for other in flags if chunk < len(other)) for chunk in range(len(flags[rank]))]


def choose_targets(targets: Targets, inversion: Inversion, labels: Tensor | None) -> Tensor | int:
    """Class indices for :meth:`GuidedFeatureInversion.refine`: one for all, (N,) or (N, T).

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
    if targets == "label" and labels is not None:
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
