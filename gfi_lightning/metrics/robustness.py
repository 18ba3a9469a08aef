"""Does a map depend on what the model learnt, and not on a little noise?"""

import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from gfi_lightning.errors import UsageError, check_count
from gfi_lightning.guard import preserved_rng
from gfi_lightning.inversion.scores import describe, first_tensor
from gfi_lightning.metrics.checks import checked_heatmaps, checked_images, checked_indices
from gfi_lightning.metrics.drift import heatmap_drift
from gfi_lightning.metrics.means import ImageMeans

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From a model, images (N, C, H, W) and targets (N,) to heatmaps (N, H, W)."""


class Randomization(NamedTuple):
    """What :func:`randomization_sanity` returns.

    Attributes:
        layers: the name of the last layer that was randomised in each stage, from the head downwards; "" stands for
            parameters that the model holds itself, outside of its layers.
        similarities: rank correlation with the trained model's map, shape (stages, N).
    """

    layers: tuple[str, ...]
    similarities: Tensor


def randomization_sanity(
    explain: Explain,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    stages: int | None = None,
    seed: int = 0,
) -> Randomization:
    """Cascading randomisation of the model (Adebayo et al. 2018, "Sanity checks for saliency maps").

    From the head down to the input, one layer after the other loses what it learnt, and those above it stay
    randomised. A map that hardly changes does not explain what the model learnt; an edge detector's does not.

    Layers are the modules that hold parameters themselves and take part in the output, in the order in which they
    are called. A layer is set back by its own ``reset_parameters()`` (a BatchNorm's statistics, too), and where it
    has none, each of its parameters is drawn from a normal distribution with that parameter's mean and standard
    deviation. All this happens in a copy, in eval mode; the model itself is not touched.

    Args:
        explain: from (model, images, targets) to heatmaps (N, H, W); it must use the model that it is given.
        model: the trained model; its parameters must be plain tensors that can be copied.
        images: shape (N, C, H, W), floating point, as the model sees them.
        targets: shape (N,), class indices.
        stages: after how many layers to explain again, spread evenly from the head to all of them; None: after each.
        seed: of the random weights. They are the same whatever the number of stages.

    Returns:
        The layers and the similarities, 1 − :func:`gfi_lightning.metrics.heatmap_drift`: 1 for the same order of
        pixels, 0 for an unrelated one, and 0 where the randomised model's map is constant or not finite.

    Raises:
        UsageError: shapes or types that do not fit, NaN, stages out of range, or a model without parameters.

    Example:
        >>> from gfi_lightning import GuidedFeatureInversion
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        >>> def explain(model, images, targets):
        ...     return GuidedFeatureInversion(model, layer="1").explain(images, targets).heatmaps
        >>> result = randomization_sanity(explain, model, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
        >>> result.layers, result.similarities.shape
        (('4', '0'), torch.Size([2, 2]))
    """
    check_stages(stages)
    images = checked_images(images)
    targets = checked_indices(targets, len(images), "targets").to(images.device)
    with torch.inference_mode(False):
        model = copy.deepcopy(model)
    with _looked_at(model):
        images = images.clone()  # autograd refuses inference tensors, which Lightning's loops hand out
        layers = _layers_from_the_head(model, images[:1])
        stops = _spread(len(layers), stages)
        trained = _explained(explain, model, images, targets)
        similarities = []
        for number, layer in enumerate(layers):
            with preserved_rng(seed + number), torch.no_grad():
                _randomize(model.get_submodule(layer))
            if number in stops:
                similarities.append(_similarity(_maps(explain, model, images, targets), trained))
    return Randomization(tuple(layers[stop] for stop in stops), torch.stack(similarities))


def check_stages(stages: int | None) -> None:
    """Raise UsageError for a number of stages that is none."""
    if stages is not None:
        check_count("stages", stages)


@contextmanager
def _looked_at(model: nn.Module) -> Iterator[None]:
    """In eval mode and eager, with gradients for whoever explains; flags and random states are put back."""
    flags = [(part, part.training) for part in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(preserved_rng())
        for part, training in flags:
            stack.callback(setattr, part, "training", training)
            part.training = False
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the import would take seconds
            # A compiled forward ignores hooks that came after its compilation.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def _layers_from_the_head(model: nn.Module, images: Tensor) -> list[str]:
    """The modules that hold parameters and take part in the output, the last first."""
    names = {name: _own_parameters(module) for name, module in model.named_modules()}
    names = {name: parameters for name, parameters in names.items() if parameters}
    if not names:
        raise UsageError(f"The model ({type(model).__name__}) has no parameters: there is nothing to randomise.")
    calls, gradients = _calls_and_gradients(model, images)
    # What is used without being called, as the last layer of attention is, belongs to what is called around it.
    used = [name for name, own in names.items() if name in calls or any(id(one) in gradients for one in own)]
    places = {name: number for number, name in enumerate(used)}
    return sorted(used, key=lambda name: (calls[_innermost(name, calls)], places[name]), reverse=True)


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return [one for one in module.parameters(recurse=False) if one.is_floating_point()]


def _innermost(name: str, calls: dict[str, int]) -> str:
    """The innermost module around one, or itself, that was called."""
    while name not in calls:
        name = name.rpartition(".")[0]
    return name


def _calls_and_gradients(model: nn.Module, images: Tensor) -> tuple[dict[str, int], set[int]]:
    """When each module was called for the last time, and the ids of the parameters that the output depends on."""
    calls = {"": 0}
    clock = itertools.count()

    def note(name: str, *_: Any) -> None:
        calls[name] = next(clock)

    parameters = [one for one in model.parameters() if one.is_floating_point()]
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                # Before the call: what a container holds itself, such as an embedding of positions, comes first.
                stack.callback(module.register_forward_pre_hook(partial(note, name)).remove)
        for parameter in parameters:
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_()
        output = model(images)
        scores = first_tensor(output)
        if scores is None:
            raise UsageError(f"The model's output is {describe(output)}; expected is a floating point tensor in it.")
        # Where the model detaches its output, we go by the calls alone.
        gradients = torch.autograd.grad(scores.sum(), parameters, allow_unused=True) if scores.requires_grad else ()
    return calls, {id(one) for one, gradient in zip(parameters, gradients, strict=False) if gradient is not None}


def _spread(count: int, stages: int | None) -> list[int]:
    """Which of so many layers end a stage: the first always, and the last where there are several stages."""
    if stages is None or stages >= count:
        return list(range(count))
    return [round(stage * (count - 1) / max(stages - 1, 1)) for stage in range(stages)]


def _randomize(layer: nn.Module) -> None:
    before = [(one, one.clone()) for one in _own_parameters(layer)]
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()
    for parameter, trained in before:
        # Also where the reset does not reach what the weight is computed from, as in weight normalisation.
        if torch.equal(parameter, trained):
            noise = torch.randn(parameter.shape).to(parameter)
            parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)


def _maps(explain: Explain, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    heatmaps = explain(model, images, targets)
    if not isinstance(heatmaps, Tensor) or heatmaps.ndim != 3 or len(heatmaps) != len(images):
        raise UsageError(
            f"explain= returned {describe(heatmaps)}; expected is one map for each of the {len(images)} images, "
            "a floating point tensor (N, H, W)."
        )
    return heatmaps


def _explained(explain: Explain, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return checked_heatmaps(_maps(explain, model, images, targets), "the heatmaps that explain= returned")


def _similarity(heatmaps: Tensor, trained: Tensor) -> Tensor:
    """Rank correlation; a map that is not finite tells as little as a constant one."""
    finite = heatmaps.isfinite().flatten(1).all(1)[:, None, None]
    return 1 - heatmap_drift(torch.where(finite, heatmaps.detach(), 0.0), trained).float()


def sensitivity_max(
    explain: Explain,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> Tensor:
    """The largest relative change of a map under small noise (Yeh et al. 2019, SENS_MAX, by random samples).

    max over the samples of ‖map(x + noise) − map(x)‖ / ‖map(x)‖, Euclidean norms; the noise is uniform and at most
    ``radius`` in each pixel and channel. As in Captum's ``sensitivity_max``, a map that is zero counts as of norm 1.
    Every image gets the same noise, so that its value does not depend on the rest of its batch. The model is in eval
    mode meanwhile; its ``.grad`` is left to ``explain``.

    Args:
        explain: from (model, images, targets) to heatmaps (N, H, W).
        model: the model.
        images: shape (N, C, H, W), floating point, as the model sees them.
        targets: shape (N,), class indices.
        radius: in units of each image's range, max − min.
        samples: how often noise is added; the maps are made samples + 1 times.
        seed: of the noise.

    Returns:
        Shape (N,), at least 0: the less, the stabler.

    Raises:
        UsageError: shapes or types that do not fit, NaN, or a radius or number of samples out of range.

    Example:
        >>> explain = lambda model, images, targets: images[:, 0].clamp(min=0.5)
        >>> images = torch.tensor([[[[0.0, 1.0]]], [[[0.0, 0.4]]]])
        >>> sensitivity_max(explain, nn.Identity(), images, torch.tensor([0, 0]), radius=0.1) > 0
        tensor([ True, False])
    """
    check_noise(radius, samples)
    images = checked_images(images)
    targets = checked_indices(targets, len(images), "targets").to(images.device)
    generator = torch.Generator().manual_seed(seed)
    with _looked_at(model):
        images = images.clone()  # autograd refuses inference tensors, which Lightning's loops hand out
        reach = radius * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
        quiet = _explained(explain, model, images, targets)
        changes = []
        for _ in range(samples):
            # Drawn on the CPU in one precision, so that every device and precision sees the same noise.
            noise = (2 * torch.rand(images.shape[1:], generator=generator) - 1).to(images)
            noisy = _explained(explain, model, images + reach * noise, targets)
            changes.append((noisy - quiet).flatten(1).norm(dim=1))
    norm = quiet.flatten(1).norm(dim=1)
    return torch.stack(changes).amax(0) / torch.where(norm > 0, norm, 1.0)


def check_noise(radius: float, samples: int) -> None:
    """Raise UsageError for noise that is none."""
    check_count("samples", samples)
    if not radius > 0:
        raise UsageError(f"radius={radius} must be above 0.")


class RandomizationSanity(Metric):
    """The mean similarity to the trained model's maps as the model is randomised, see :func:`randomization_sanity`.

    Args:
        stages: after how many layers to explain again, spread evenly from the head to all of them; None: after each.
        seed: of the random weights.
        options: see ``torchmetrics.Metric``.

    Attributes:
        layers: the name of the last layer that was randomised in each stage; empty before the first update.

    Raises:
        UsageError: stages out of range.

    Example:
        >>> from gfi_lightning import GuidedFeatureInversion
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        >>> def explain(model, images, targets):
        ...     return GuidedFeatureInversion(model, layer="1").explain(images, targets).heatmaps
        >>> metric = RandomizationSanity()
        >>> metric.update(explain, model, torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
        >>> metric.layers, metric.compute()["per_stage"].shape
        (('4', '0'), torch.Size([2]))
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    similarities: list[Tensor] | Tensor
    depth: Tensor

    def __init__(self, stages: int | None = None, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        check_stages(stages)
        self.stages = stages
        self.seed = seed
        self.layers: tuple[str, ...] = ()
        # Flat, because a rank that saw no image does not know how many stages there are.
        self.add_state("similarities", [], dist_reduce_fx="cat")
        self.add_state("depth", torch.tensor(0), dist_reduce_fx="max")

    def update(self, explain: Explain, model: nn.Module, images: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            explain: from (model, images, targets) to heatmaps (N, H, W); it must use the model that it is given.
            model: the trained model, the same in every update; it is copied.
            images: shape (N, C, H, W), floating point, as the model sees them.
            targets: shape (N,), class indices.

        Raises:
            UsageError: shapes or types that do not fit, NaN, or a model with other layers than before.
        """
        result = randomization_sanity(explain, model, images, targets, stages=self.stages, seed=self.seed)
        if self.layers not in ((), result.layers):
            raise UsageError(
                f"The model's layers are {result.layers} and were {self.layers}: use one metric for each model, "
                "or reset() it."
            )
        self.layers = result.layers
        self.depth = torch.full_like(self.depth, len(result.layers))
        assert isinstance(self.similarities, list)
        self.similarities.append(result.similarities.T.flatten().to(self.depth.device))

    def compute(self) -> dict[str, Tensor]:
        """The means over images.

        Returns:
            "head": the similarity after the first stage, when only the head is random; "all": after the last;
            "per_stage": shape (stages,). 1: the maps are as before; 0: unrelated. NaN where there was no image.
        """
        if int(self.depth) == 0:
            nan = torch.tensor(torch.nan, device=self.depth.device)
            return {"head": nan, "all": nan, "per_stage": nan[None]}
        per_stage = dim_zero_cat(self.similarities).view(-1, int(self.depth)).mean(0)
        return {"head": per_stage[0], "all": per_stage[-1], "per_stage": per_stage}

    def reset(self) -> None:
        """Forget all images, and the model's layers."""
        super().reset()
        self.layers = ()


class Sensitivity(ImageMeans):
    """The mean over images of the largest relative change under small noise, see :func:`sensitivity_max`.

    Args:
        radius: of the noise, in units of each image's range.
        samples: how often noise is added.
        seed: of the noise.
        options: see ``torchmetrics.Metric``.

    Raises:
        UsageError: an argument is out of range.

    Example:
        >>> metric = Sensitivity(radius=0.1)
        >>> explain = lambda model, images, targets: images[:, 0].clamp(min=0.5)
        >>> metric.update(explain, nn.Identity(), torch.tensor([[[[0.0, 0.4]]]]), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False

    def __init__(self, radius: float = 0.02, samples: int = 10, seed: int = 0, **options: Any) -> None:
        super().__init__(1, **options)
        check_noise(radius, samples)
        self.radius = radius
        self.samples = samples
        self.seed = seed

    def update(self, explain: Explain, model: nn.Module, images: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            explain: from (model, images, targets) to heatmaps (N, H, W).
            model: the model.
            images: shape (N, C, H, W), floating point, as the model sees them.
            targets: shape (N,), class indices.

        Raises:
            UsageError: shapes or types that do not fit, or NaN.
        """
        self.add(
            sensitivity_max(explain, model, images, targets, radius=self.radius, samples=self.samples, seed=self.seed)
        )

    def compute(self) -> Tensor:
        """The mean, at least 0."""
        return self.means()[0]
