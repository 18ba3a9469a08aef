"""The fixed samples of one training run, explained again and again."""

import copy
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from gfi_lightning.errors import UsageError
from gfi_lightning.guard import preserved_generators, undisturbed
from gfi_lightning.inversion.guided import GuidedFeatureInversion
from gfi_lightning.inversion.results import Explanation, Inversion
from gfi_lightning.inversion.scores import describe
from gfi_lightning.logs import logger
from gfi_lightning.metrics.drift import heatmap_drift
from gfi_lightning.recording.images import denormalized, in_unit_range, stretched
from gfi_lightning.recording.record import Record, sample_records
from gfi_lightning.training import internals
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
Warn = Callable[[str], None]

# What a forward raises that expects something else than a tensor of images.
_WRONG_CALL = (TypeError, IndexError, KeyError, AttributeError, NotImplementedError)


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


class Session:
    """Explains the same samples whenever it is asked to.

    Args:
        settings: what the user asked for.
        loader: the validation loader; None where there is none, or where a ready batch was given.
        restored: :meth:`state` of the session that a checkpoint resumes, or an empty dict.
        warn: says something once.

    Raises:
        UsageError: there is nothing to read, or the samples do not exist.
    """

    def __init__(self, settings: Settings, loader: Any, restored: dict[str, Any], warn: Warn) -> None:
        dataset = getattr(loader, "dataset", None)
        self._settings = settings
        self._warn = warn
        with preserved_generators(dataset):
            self._samples = _read(settings, loader, restored, warn)
        self._normalization = settings.normalization or find_normalization(dataset)
        names = attribute_of_dataset(dataset, "classes") if settings.class_names is None else settings.class_names
        self.class_names = as_names(names)
        self._layer: str | nn.Module | None = settings.layer or restored.get("layer")
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

    def explain(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> Record:
        """Explain the samples with the weights as they are; the module is left as it was found.

        Raises:
            UsageError: the batch, the layers, the targets or the class names cannot be used.
        """
        with undisturbed(pl_module), internals.validating(trainer), internals.not_logging(pl_module):
            # A copy, because the module's transfer hooks may work in place.
            batch = internals.to_device(trainer, pl_module, copy.deepcopy(self._samples.batch))
            images, labels = self._split(batch)
            self._notice_changes(images)
            self._check_normalization(images)
            explainer = GuidedFeatureInversion(pl_module, self._layer, **self._settings.explainer)
            with trainer.precision_plugin.forward_context():
                inversion = self._invert(explainer, images, batch)
                self._check_class_names(inversion)
                explanations = self._explain_targets(explainer, inversion, labels)
        self._layer = self._layer or explainer.layer
        samples = sample_records(self._displayable(images), labels, inversion, explanations)
        return Record(step, inversion.grid, samples)

    def scalars(self, record: Record) -> dict[str, float]:
        """The curves of a run: means over the samples. Drift is there from the second run on."""
        scalars = record.scalars()
        maps = record.maps()
        if self._last_maps is not None and self._last_maps.shape == maps.shape:
            scalars["gfi/drift"] = float(heatmap_drift(maps, self._last_maps).mean())
        self._last_maps = maps
        return scalars

    def _split(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        images, given = split_batch(batch, self._settings.batch)
        labels = class_indices(given, len(images))
        if labels is None and self._settings.targets == "label":
            self._warn(
                f"GFICallback found no class indices in the validation batch, which is {describe(batch)}: "
                "it explains the predicted classes. Give targets= or batch= for others."
            )
        return images, None if labels is None else labels.to(images.device)

    def _invert(self, explainer: GuidedFeatureInversion, images: Tensor, batch: Any) -> Inversion:
        try:
            return explainer.invert(images)
        except _WRONG_CALL as error:
            own = [self._settings.explainer[name] for name in ("forward", "background", "score")]
            if any(map(callable, own)):  # the user's own code may be what failed
                raise
            raise UsageError(
                f"forward() was called with {describe(images)}, the images in a validation batch, which is "
                f"{describe(batch)}, and failed with {type(error).__name__}: {error}. "
                "Give forward= (module, images → logits), or batch= (batch → images, labels)."
            ) from error

    def _explain_targets(
        self, explainer: GuidedFeatureInversion, inversion: Inversion, labels: Tensor | None
    ) -> list[tuple[list[int], Explanation]]:
        """Explanations, each with the numbers of the samples that it is about."""
        everyone = list(range(len(inversion.foreground)))
        targets = choose_targets(self._settings.targets, inversion, labels)
        explanations = [(everyone, explainer.refine(inversion, targets))]
        if self._settings.targets == "label" and labels is not None and inversion.predicted is not None:
            # On their own, so that the labels' maps are always computed in the same chunks: in float32 maps
            # of other chunks differ by rounding, which drift would show.
            wrong = inversion.predicted != labels
            if wrong.any():
                numbers = wrong.nonzero().flatten().tolist()
                explanations.append((numbers, explainer.refine(inversion.select(wrong), inversion.predicted[wrong])))
        return explanations

    def _check_class_names(self, inversion: Inversion) -> None:
        names = as_names(self._settings.class_names)
        if names is None or inversion.predicted is None:
            return
        classes = inversion.logits().shape[1]
        if classes > 1 and len(names) < classes:
            raise UsageError(f"class_names has {len(names)} names, but the model has {classes} classes.")

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


def choose_targets(targets: Targets, inversion: Inversion, labels: Tensor | None) -> Tensor | int:
    """Class indices for :meth:`GuidedFeatureInversion.refine`: one for all, (N,) or (N, T).

    Raises:
        UsageError: the predicted class is asked for, and the model's output holds no logits.
    """
    if callable(targets):
        return targets(inversion.logits(), labels)
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
    return read_samples(loader, settings.num_samples, indices)


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
