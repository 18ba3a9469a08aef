"""The fixed samples of one training run, explained again and again."""

import copy
import math
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gfi_lightning.errors import UsageError, attempt, tell
from gfi_lightning.guard import preserved_parameters, preserved_state, undisturbed, unnoticed
from gfi_lightning.inversion.guided import GuidedFeatureInversion
from gfi_lightning.inversion.layers import LayerLike, as_layers, image_size
from gfi_lightning.inversion.results import Explanation, Inversion
from gfi_lightning.inversion.scores import describe, logits_of
from gfi_lightning.inversion.search import base_layers
from gfi_lightning.metrics.drift import heatmap_drift
from gfi_lightning.recording.curves import Curves, CurveTracker
from gfi_lightning.recording.images import displayable, in_unit_range
from gfi_lightning.recording.record import Record, SampleRecord, sample_records
from gfi_lightning.training import internals
from gfi_lightning.training.batches import (
    are_amounts,
    are_channels_last,
    class_indices,
    multi_hot,
    one_class_each,
    soft_labels,
    split_batch,
)
from gfi_lightning.training.budget import wait_for_gpu
from gfi_lightning.training.calling import Call, find_call
from gfi_lightning.training.dataset_info import label_column, makers_of_items, names_of_classes
from gfi_lightning.training.foreign import OF_ANY_METHOD, ForeignExplainer
from gfi_lightning.training.memory import Memory
from gfi_lightning.training.normalization import fitting_normalization, normalizations
from gfi_lightning.training.progress import QUIET, Progress
from gfi_lightning.training.ranks import Ranks
from gfi_lightning.training.regions import as_masks, parts_of_samples
from gfi_lightning.training.samples import Samples, as_indices, as_names, is_batch, read_samples
from gfi_lightning.training.share import FOR_A_REGRESSION, Batch, Explanations, Settings, Share, Targets, Turn
from gfi_lightning.training.steps import StepWatch

T = TypeVar("T")

_NO_ROOM = "Not even one image at a time fits beside the training: a smaller batch_size leaves room for it."
_SOFT = (
    ", but soft ones, of which some have no class with more than half",
    "targets= for others, or a validation loader whose collate function does not mix images",
)
_AMOUNTS = (", but amounts", f"{FOR_A_REGRESSION}, and targets= or batch= for classes")
_MULTI_HOT = (
    ", but labels of several classes at once",
    "targets='present', and score='sigmoid' where an image may have several, to explain each class that is present",
)


class Warn(Protocol):
    """How the user is told something."""

    def __call__(self, message: str, cause: str | None = None) -> None:
        """Say it, once per cause; None: once per message."""


Inform = Callable[[str], None]
"""How the user is told, once, what is no fault."""


@dataclass(frozen=True)
class Seen:
    """What one rank saw.

    Attributes:
        grid: the resolution (h, w) that the maps come from.
        samples: by their numbers.
        floors: by their numbers, how far each sample's map moves by rounding alone, where that was measured.
    """

    grid: tuple[int, int]
    samples: dict[int, SampleRecord]
    floors: dict[int, float]


class Session:
    """Explains the same samples whenever it is asked to, each rank of a distributed training its share of them.

    Args:
        settings: what the user asked for.
        loader: the validation loader; None where there is none, or where a ready batch was given.
        restored: :meth:`state` of the session that a checkpoint resumes, or an empty dict.
        warn: says something once.
        inform: likewise, of what is no fault.
        ranks: that take part.

    Raises:
        UsageError: there is nothing to read, or the samples do not exist.
    """

    def __init__(
        self,
        settings: Settings,
        loader: Any,
        restored: dict[str, Any],
        warn: Warn,
        inform: Inform,
        ranks: Ranks,
    ) -> None:
        dataset = getattr(loader, "dataset", None)
        self._settings = settings
        self._warn = warn
        self._inform = inform
        self.ranks = ranks
        self._samples = ranks.from_first(lambda: _read(settings, loader, restored, warn, inform))
        self._normalization: tuple[Any, ...] | None = settings.normalization
        # Of these the images will tell whether they can be meant; sought now, as the loader is not kept.
        self._candidates = [] if self._normalization is not None else list(normalizations(loader, []))
        self._label = label_column(dataset)
        names = settings.class_names
        self.class_names = as_names(names_of_classes(dataset, self._samples.batch) if names is None else names)
        self._call: Call | None = None
        changed = ranks.from_first(lambda: _changed_arguments(settings, restored))
        why_not_comparable = _why_not_comparable(changed, settings.warm_start)
        if why_not_comparable and restored.get("last_maps") is not None:
            inform(f"GFICallback {why_not_comparable}: it does not compare them with those, and drift starts anew.")
        # Another recipe may ask for another number of layers.
        known_layer = None if {"recipe", "explainer"}.intersection(changed) else restored.get("layer")
        self._layer: LayerLike | Sequence[LayerLike] | None = settings.layer or known_layer
        self._chunk_size: int | None = settings.explainer["chunk_size"]
        self._learned: dict[str, Any] = {}
        self._writes_parameters = True
        same_samples = restored.get("indices", []) == self._samples.indices
        comparable = same_samples and not why_not_comparable
        # The mean colours of the samples, to notice when the data has changed under the same indices.
        self._colors: Tensor | None = restored.get("colors") if same_samples else None
        self._tracker = CurveTracker(restored if comparable else {})
        self._floor_of: str | None = restored.get("floor_of") if comparable else None  # the precision and device
        self._masks: dict[str, Tensor] | None = None
        self._memory = Memory(skips_evidence=ranks.count == 1) if settings.warm_start else None
        self.base_layers = ""  # in words, once there was a run
        self.floor_seconds = 0.0  # what measuring the noise floor took in the last run

    @property
    def regions(self) -> list[str]:
        """The names of what is known to lie somewhere."""
        return list(self._samples.parts)

    def apart(self) -> "Session":
        """The same samples for an evaluation, which leaves no trace in the curves and maps of the training."""
        other = copy.copy(self)
        other._tracker = CurveTracker({})
        other._memory = None
        return other

    def state(self) -> dict[str, Any]:
        """What a resumed session needs: tensors and plain types, which load with ``weights_only``."""
        return {
            "indices": self._samples.indices,
            "dataset_size": self._samples.dataset_size,
            "layer": _names_only(self._layer),
            "method": self._settings.method(),
            "colors": self._colors,
            "floor_of": self._floor_of,
            **self._tracker.state(),
        }

    def explain(
        self, trainer: L.Trainer, pl_module: L.LightningModule, measure_floor: bool = False, progress: Progress = QUIET
    ) -> Seen:
        """Explain the samples with the weights as they are; the module is left as it was found.

        Args:
            trainer: of the module.
            pl_module: to be explained.
            measure_floor: how far maps move by rounding alone is measured, too, unless it has been in this precision.
            progress: told of each forward pass on this rank.

        Returns:
            What was seen on this rank.

        Raises:
            UsageError: the batch, the layers, the targets or the class names cannot be used.
        """
        with progress, ExitStack() as stack:
            self.ranks.agree(lambda: self._enter(stack, trainer, pl_module))
            batch = self.ranks.agree(lambda: self._prepare(trainer, pl_module))
            numbers = self.ranks.share(len(batch.images))
            floor_of = f"{trainer.precision} on {pl_module.device.type}"
            measure_floor = measure_floor and floor_of != self._floor_of
            share = Share(
                explainer=self._explainer(pl_module, progress),
                context=trainer.precision_plugin.forward_context,
                settings=self._settings,
                given=describe(self._samples.batch),
                batch=batch.rows(numbers),
                # The noise floor lies between two maps of which both start cold.
                memory=None if measure_floor else self._memory,
            )
            progress.expect(share.first_passes() * (1 + measure_floor))
            try:
                inversion, explanations = self.ranks.agree(lambda: self._within_memory(share, share.explain_targets))
            finally:
                self._layer = self._layer or share.explainer.layer
                self._learned = share.explainer.capacity.learned
                if pl_module.device.type == "cuda":  # where later runs may find more or less room
                    with share.context():
                        self._chunk_size = share.explainer.capacity.chunk_size_for(batch.images)
                    share.explainer.capacity.chunk_size = self._chunk_size  # also for fewer images, of further targets
            self.base_layers = self.base_layers or _in_words(share.explainer, inversion)
            self._check_names(share.classes(inversion))
            floors, self.floor_seconds = [], 0.0
            if measure_floor:
                wait_for_gpu()
                began = time.monotonic()
                floors, self._floor_of = self._floors(share, explanations[0][1]), floor_of
                self.floor_seconds = time.monotonic() - began
            explanations += self._explain_further(share, inversion, progress)
        return self.ranks.agree(lambda: self._seen(share, numbers, inversion, explanations, floors))

    def watch(
        self,
        watch: StepWatch,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        dataloader_idx: int,
    ) -> None:
        """Have what is called to be explained watched, if the batch is of the samples' loader."""
        is_theirs = dataloader_idx == self._settings.dataloader_idx and not is_batch(self._settings.samples)
        if self._call is None or self._call.forward is not None or not is_theirs or internals.has_compiled():
            return
        called = pl_module.get_submodule(self._call.part) if self._call.part else pl_module
        images, _ = split_batch(batch, self._settings.batch, self._label)
        images = images.permute(0, 3, 1, 2) if are_channels_last(images, pl_module) else images
        watch.begin(called, images, called is pl_module and internals.calls_for_its_steps(trainer))

    def _announced(self, base_layers: str) -> None:
        self.base_layers = base_layers

    def _explainer(self, pl_module: L.LightningModule, progress: Progress) -> GuidedFeatureInversion:
        options = self._settings.explainer | {
            "chunk_size": self._chunk_size,
            "forward": self._forward(),
            "on_pass": progress.begin_pass,
        }
        if self._settings.foreign is None:
            explainer = GuidedFeatureInversion(pl_module, self._layer, **options, announce=self._announced)
            explainer.capacity.learn(self._learned)
            return explainer
        shared = {name: options[name] for name in (*OF_ANY_METHOD, "on_pass")}
        return ForeignExplainer(pl_module, self._settings.foreign, **shared)

    def _floors(self, share: "Share", explanation: Explanation) -> list[float]:
        """How far each map moves by rounding alone."""
        assert explanation.grid is not None
        again = self.ranks.agree(lambda: self._within_memory(share, lambda: share.explain_nudged(explanation)))
        first, second = (
            F.adaptive_avg_pool2d(
                one.heatmaps.cpu().reshape(len(one.targets), -1, *one.heatmaps.shape[-2:]), explanation.grid
            )
            for one in (explanation, again)
        )
        return heatmap_drift(first[:, 0], second[:, 0]).tolist()

    def _explain_further(self, share: "Share", inversion: Inversion, progress: Progress) -> Explanations:
        """Stage 2 for the targets that not every sample has, with as many passes on every rank."""
        turns = share.further_targets(inversion)
        progress.expect(share.further_passes(inversion, turns))
        count = max(self.ranks.everyones(len(turns)))
        turns += [Turn.of_nobody(share.batch.images)] * (count - len(turns))
        return [one for turn in turns for one in self._explain_turn(share, inversion, turn)]

    def _explain_turn(self, share: "Share", inversion: Inversion, turn: "Turn") -> Explanations:
        own = [bool(part.any()) for part in turn.chosen.split(inversion.chunk_sizes)]
        busy = _busy_anywhere(self.ranks.everyones(own), self.ranks.rank)
        return self.ranks.agree(lambda: self._within_memory(share, lambda: share.explain_turn(inversion, turn, busy)))

    def _enter(self, stack: ExitStack, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with attempt("set the model aside", "Its state is copied, to be put back: that takes memory for its buffers."):
            stack.enter_context(unnoticed(pl_module))
            # A large model whose forward wrote into no parameter in the first run needs no copy of them later.
            written: list[nn.Parameter] = []
            stack.callback(lambda: setattr(self, "_writes_parameters", bool(written)))
            # What another method does in a later run is not known from the first.
            compare = self._writes_parameters or self._settings.foreign is not None
            written = stack.enter_context(preserved_parameters(pl_module, compare))
            stack.enter_context(undisturbed(pl_module))
        stack.enter_context(internals.validating(trainer))
        stack.enter_context(internals.not_logging(trainer, pl_module))

    def _seen(
        self,
        share: "Share",
        numbers: list[int],
        inversion: Inversion,
        explanations: Explanations,
        floors: list[float],
    ) -> Seen:
        if self._memory is not None:
            self._memory.keep(inversion, explanations)
        images, labels, present, _ = share.batch
        method = "" if self._settings.foreign is None else self._settings.foreign.name
        samples = sample_records(self._displayable(images), labels, present, inversion, explanations, method)
        kept = {n: one for n, one in zip(numbers, samples, strict=True) if self.ranks.keeps(n)}
        grid = explanations[0][1].grid
        assert grid is not None
        return Seen(grid, kept, dict(zip(numbers, floors, strict=False)))

    def record(self, seen: list[Seen], step: int, epoch: int | None) -> Record:
        """What was seen on all ranks together."""
        by_number = {number: sample for part in seen for number, sample in part.samples.items()}
        samples = [by_number[number] for number in sorted(by_number)]
        record = Record(step, seen[0].grid, samples, epoch, self._masks or {})
        self._tell_of_not_finite(record)
        return record

    def curves(self, record: Record, seen: list[Seen]) -> Curves:
        """The curves of a run, on the first rank."""
        floors = {number: floor for part in seen for number, floor in part.floors.items()}
        if floors:
            self._tracker.floor = torch.tensor([floors[number] for number in sorted(floors)])
        return self._tracker.curves(record)

    def _prepare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> "Batch":
        """All samples, on the model's device."""
        with attempt("bring the samples to the model", "They went through its transfer hooks, as for a validation."):
            # A copy, because the module's transfer hooks may work in place.
            batch = internals.to_device(
                trainer, pl_module, copy.deepcopy(self._samples.batch), self._settings.dataloader_idx
            )
        images, given = split_batch(batch, self._settings.batch, self._label)
        channels_last = are_channels_last(images, pl_module)
        images = images.permute(0, 3, 1, 2).contiguous() if channels_last else images
        if images.device.type == "cpu":
            images = images.to(pl_module.device)  # arrays are not moved by Lightning
        self._notice_changes(images)
        self._check_normalization(images)
        if self._call is None:  # in the first run
            self._find_normalization(trainer, pl_module, images)
            form, own = None if self._settings.batch else batch, self._settings.explainer["forward"]
            with trainer.precision_plugin.forward_context():
                self._call = find_call(pl_module, images, form, own, channels_last)
                if self._settings.explainer["score"] is None:
                    self._settings = self._settings.scored_by(_usual_score(self._call, pl_module, images, given))
            if not self._call.is_plain and self._call != Call(own):
                self._inform(f"The model is called as {self._call}.")
        labels, present = self._understood_labels(given, len(images))
        targets = self._understood_targets(
            labels, present, self._instead_of_classes(given, len(images)), describe(batch)
        )
        if self._masks is None:
            self._masks = as_masks(self._samples.parts, len(images), image_size(images))
            for name in [name for name, masks in self._masks.items() if not masks.any()]:
                self._warn(f"GFICallback: the region {name!r} lies in none of the samples: it has no curves, no alarm.")
        labels, present = (None if one is None else one.to(images.device) for one in (labels, present))
        return Batch(images, labels, present, targets)

    def _forward(self) -> Call | None:
        return None if self._call is None or self._call.is_plain else self._call

    def _find_normalization(self, trainer: L.Trainer, pl_module: L.LightningModule, images: Tensor) -> None:
        if self._normalization is not None:
            return
        hooked = normalizations(None, [*internals.data_modules(trainer), pl_module])
        found = fitting_normalization([*self._candidates, *hooked], images)
        self._candidates = []
        if found is not None and not found.is_usual:
            self._inform(f"The pictures are shown as they were before the normalisation in {found.place}.")
        self._normalization = found

    def _understood_labels(self, given: Any, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Class indices, and which classes are present, of what a batch has for labels; None for what they are not."""
        labels, present = class_indices(given, count), multi_hot(given, count)
        # Where classes share 1, one-hot labels are class indices; but told each by itself, several with one each now.
        if labels is not None or self._settings.explainer["score"] != "softmax" or self._settings.targets == "present":
            return labels, present
        if (indices := one_class_each(given, count)) is not None:
            return indices, None
        soft = soft_labels(given, count)
        if soft is None or not (soft.amax(1) > 0.5).all():
            return None, present
        self._inform("The labels are soft: each image's label is the class that has more than half of it.")
        return soft.argmax(1), None

    def _instead_of_classes(self, given: Any, count: int) -> tuple[str, str]:
        """What labels that are no class indices are, in words, and what to give; nothing where that is enough."""
        score = self._settings.explainer["score"]
        if score == "softmax" and soft_labels(given, count) is not None:
            return _SOFT
        if multi_hot(given, count) is not None:
            return _MULTI_HOT
        if are_amounts(given, count):
            return _AMOUNTS if not callable(score) else ("", "")
        return "", "targets= or batch= for others"

    def _understood_targets(
        self, labels: Tensor | None, present: Tensor | None, instead: tuple[str, str], batch: str
    ) -> Targets:
        """What is explained, from what was asked for and the kind of labels that there are."""
        targets, score = self._settings.targets, self._settings.explainer["score"]
        if targets == "label" and present is not None and score == "sigmoid":
            targets = "present"
            self._inform(
                "The labels are multi-hot: each class that is present is explained (targets='present'), told by itself "
                "(score='sigmoid')."
            )
        elif targets == "label" and labels is None:
            what, advice = instead
            if advice:
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

    def _within_memory(self, share: "Share", work: Callable[[], T]) -> T:
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
            share.explainer.capacity.chunk_size = self._chunk_size = share.chunk_size // 2
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

    def _check_names(self, classes: int) -> None:
        """Names that were found are those of something else where their number is not that of the classes."""
        names = self.class_names
        if names is None or self._settings.class_names is not None or classes in (0, len(names)):
            return
        self._inform(
            f"The data set has names of {len(names)} classes, and the model has {classes}: classes are shown by their "
            "indices. GFICallback(class_names=[...]) names them."
        )
        self.class_names = None

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
            self._colors, self._floor_of = colors, None
            self._tracker.forget_maps()
            if self._memory is not None:
                self._memory.forget()

    def _displayable(self, images: Tensor) -> Tensor:
        found = self._normalization
        fits = found is not None and len(found[0]) in (1, images.shape[1])
        if not fits and not in_unit_range(images):
            self._inform(
                "No normalisation was found that these images can have gone through: each picture is shown by its own "
                "range. Give GFICallback(mean=..., std=...) for true colours."
            )
        return displayable(images, (found[0], found[1]) if found is not None and fits else None)


def _in_words(explainer: GuidedFeatureInversion, inversion: Inversion) -> str:
    """Where the maps come from."""
    if isinstance(explainer, ForeignExplainer):
        return f"Maps by {explainer.method}."
    names = [explainer.layer] if isinstance(explainer.layer, str) else list(explainer.layer or ())
    return base_layers([(name, maps.shape[1:]) for name, maps in zip(names, inversion.chunks[0].maps, strict=True)])


def _names_only(layer: LayerLike | Sequence[LayerLike] | None) -> str | list[str] | None:
    """A layer's name, or several; None where it is not known by name."""
    names = [] if layer is None else [name for name in as_layers(layer) if isinstance(name, str)]
    return names[0] if isinstance(layer, str) else names or None


def _changed_arguments(settings: Settings, restored: dict[str, Any]) -> list[str]:
    """What was given otherwise before the checkpoint, so that maps are others; of old checkpoints only the layer."""
    before, layer = restored.get("method", {}), restored.get("layer")
    changed = [name for name, value in settings.method().items() if before.get(name, value) != value]
    if settings.layer is not None and layer is not None and as_layers(settings.layer) != as_layers(layer):
        changed.append("layer")
    return changed


def _why_not_comparable(changed: Sequence[str], warm_start: bool) -> str:
    """Why the first maps of a resumed session are no others' successors; empty: they are."""
    if changed:
        return f"makes maps by another {' and '.join(f'{name}=' for name in changed)} than before the checkpoint"
    if warm_start:
        return "makes its first maps from nothing, as a checkpoint keeps no ω for warm_start=True, only earlier maps"
    return ""


def _usual_score(call: Call, module: nn.Module, images: Tensor, labels: Any) -> str:
    """By which score a model with such labels is trained: "sigmoid" where some image has several classes or none."""
    present = multi_hot(labels, len(images))
    if present is None or (present.sum(1) == 1).all():
        return "softmax"
    try:
        with torch.no_grad():
            classes = logits_of(call(module, images[:1])).shape[1]
    except Exception:  # whatever is wrong with it, the explanation will tell
        return "softmax"
    return "sigmoid" if classes == present.shape[1] else "softmax"  # else the labels are about something else


def _busy_anywhere(flags: list[list[bool]], rank: int) -> list[bool]:
    """The chunks of this rank for which any rank makes a pass; a rank that ran out of memory has more of them."""
    return [any(other[chunk] for other in flags if chunk < len(other)) for chunk in range(len(flags[rank]))]


def _read(settings: Settings, loader: Any, restored: dict[str, Any], warn: Warn, inform: Inform) -> Samples:
    if is_batch(settings.samples):
        return Samples(settings.samples, parts=parts_of_samples(cast(Any, settings.regions) or {}, None, None))
    if loader is None:
        raise UsageError(
            "GFICallback found no validation data to explain: give the Trainer a validation loader, "
            "or give samples=(images, labels)."
        )
    indices = as_indices(settings.samples)
    if indices is None:
        indices = _restored_indices(loader, restored, warn)
        found, count = restored.get("dataset_size"), settings.num_samples
        if indices is not None and found is not None and len(indices) != min(count, found):
            inform(
                f"GFICallback(num_samples={count}) goes on with the {len(indices)} samples of the checkpoint, so that "
                "pictures can be compared with those from before. For others give samples=."
            )
    advice = "Give samples=: indices of items that can be read, or a ready batch (images, labels)."
    # Not their tensors, which may be the whole of the data; reading does not change those.
    with preserved_state(makers_of_items(loader), tensors=False), attempt("read its samples", advice):
        samples = read_samples(loader, settings.num_samples, indices, settings.regions)
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
