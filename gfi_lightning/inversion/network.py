"""The explained network, seen as the method sees it: feature maps, features, and an output."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.activations import activation_of, logits_before
from gfi_lightning.inversion.layers import (
    AllFeatureMaps,
    Capture,
    Layer,
    LayerLike,
    Reached,
    StopAt,
    Tap,
    as_layers,
    begin_pass,
    feature_maps,
    hooked,
    image_size,
    module_name,
)
from gfi_lightning.inversion.scores import at_least_float32, first_tensor
from gfi_lightning.inversion.search import FeatureMapSearch, Found, Trial
from gfi_lightning.logs import logger

Forward = Callable[[nn.Module, Tensor], Any]
T = TypeVar("T")
Kind = tuple[Any, ...]
"""Of images: their shape (C, H, W), and their type."""


class Look(NamedTuple):
    """What one forward pass over untouched images shows.

    Attributes:
        maps: each base layer's feature maps, (N, K, h, w), the coarsest last.
        features: the inversion layer's, (N, ...).
        output: the model's, see :meth:`Network.understood`.
    """

    maps: tuple[Tensor, ...]
    features: Tensor
    output: Any


class Precision:
    """Keeps autocast off, but for the passes of a model that fails without it.

    Its rounding to half precision changes maps, and PyTorch advises against a backward pass under it.
    """

    def __init__(self) -> None:
        self.needs_autocast = False
        self._given: str | None = None  # from outside, for this kind of device

    @contextmanager
    def full(self, device: torch.device) -> Iterator[None]:
        """No autocast within; within another one it does nothing more."""
        if not torch.is_autocast_enabled(device.type):
            yield
            return
        before, self._given = self._given, device.type
        try:
            with torch.autocast(device.type, enabled=False):
                yield
        finally:
            self._given = before

    def of_a_pass(self) -> AbstractContextManager[Any]:
        """In which the model is called."""
        if self._given is None or not self.needs_autocast:
            return nullcontext()
        return torch.autocast(self._given, enabled=True)

    def tried(self, first_pass: Callable[[], T]) -> T:
        """What the first pass returns; under autocast, where that was given and it fails without.

        Raises:
            Exception: of the first try, where the second one fails as well.
        """
        try:
            return first_pass()
        except Exception as error:
            if self._given is None or self.needs_autocast or not _may_be_of_precision(error):
                raise
            first = error
        self.needs_autocast = True
        try:
            return first_pass()
        except Exception:
            self.needs_autocast = False  # which was not the reason
            raise first from None

    def is_finer_than_given(self, device: torch.device) -> bool:
        """Whether the model takes more memory than where autocast is on, as it is outside."""
        is_given = self._given is not None or torch.is_autocast_enabled(device.type)
        return is_given and not self.needs_autocast


def _may_be_of_precision(error: Exception) -> bool:
    return not isinstance(error, (UsageError, torch.OutOfMemoryError)) and "memory" not in str(error)


class Network:
    """Runs a model for the method, and knows its base layers and its inversion layer.

    Args:
        model: the model, in eval mode whenever it is run.
        layer: the base layer, or several, the coarsest last; None: found in the first :meth:`look`.
        inversion_layer: None: the last base layer.
        forward: (model, images) → output; None: ``model(images)``.
        resolutions: how many base layers are looked for.
        on_pass: called before each forward pass.
        announce: told which base layers were found.
        needs_logits: of a model that ends in softmax or sigmoid the output is what went in there.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: LayerLike | Sequence[LayerLike] | None,
        inversion_layer: LayerLike | None,
        forward: Forward | None,
        resolutions: int = 1,
        on_pass: Callable[[], object] | None = None,
        announce: Callable[[str], object] | None = None,
        needs_logits: bool = False,
    ) -> None:
        self.model = model
        self.base = () if layer is None else tuple(self._parsed(one) for one in as_layers(layer))
        if layer is not None and not self.base:
            raise UsageError(f"layer={layer!r} names no layer: give one or several, or None.")
        self._inversion = None if inversion_layer is None else self._parsed(inversion_layer, "inversion_layer")
        self._resolutions = resolutions
        self._calls: dict[Layer, int] = {}
        self._forward = forward
        self._on_pass = on_pass
        self._announce = announce or logger.info
        self._lifts_no_grad = False
        self.activation: str | None = None if needs_logits else ""  # known after the first :meth:`understood`
        self.precision = Precision()
        # Whether some base layer gives patches, tokens or maps with the channels last; known after the first look.
        self.gives_patches = False
        self.channels_last = False  # the memory format in which the model gets its images
        self.kept_bytes: dict[Kind, float | None] = {}  # see bytes_per_image; to be handed on to who explains the same

    @property
    def inversion(self) -> Layer:
        """The inversion layer; known after the first :meth:`look`."""
        return self._inversion or self.base[-1]

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP spreads the model over ranks, all of which must make each pass to its end."""
        fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, not used
        return fsdp is not None and any(isinstance(part, fsdp.FSDPModule) for part in self.model.modules())

    def _parsed(self, layer: LayerLike, argument: str = "layer") -> Layer:
        return Layer.parse(module_name(self.model, layer, argument), dict(self.model.named_modules()))

    def output(self, images: Tensor) -> Any:
        """The model's output, as it is :meth:`understood`.

        Raises:
            UsageError: a gradient is needed, and the model cuts it.
        """
        return logits_before(self.activation, self.raw_output(images))

    def raw_output(self, images: Tensor) -> Any:
        """What the model returns; errors as of :meth:`output`."""
        output = self._run(images)
        return self._run(images) if self._cuts_gradient(images, first_tensor(output)) else output

    def understood(self, output: Any, images: Tensor) -> Any:
        """The model's output for some images, or the logits that it was made of, where it is probabilities.

        The first one that is finite tells which; where it may be a sigmoid's, together with one more forward pass.
        """
        if self.activation is None:
            self.activation = activation_of(output, lambda: self._traced(images[:1]))
        return logits_before(self.activation, output)

    def _traced(self, image: Tensor) -> Any:
        if self.is_sharded:  # on one rank alone a pass must not be made
            return None
        with torch.enable_grad():
            return self.raw_output(image.detach().requires_grad_().clone())  # as a model may work in place

    def _run(self, images: Tensor) -> Any:
        if self._on_pass is not None:
            self._on_pass()
        begin_pass()
        if self.channels_last:  # only for the network: all else is faster as it was
            images = images.contiguous(memory_format=torch.channels_last)
        with _LiftedNoGrad() if self._lifts_no_grad else nullcontext(), self.precision.of_a_pass():
            return self.model(images) if self._forward is None else self._forward(self.model, images)

    def _cuts_gradient(self, images: Tensor, result: Tensor | None) -> bool:
        """Whether the model cut the gradient just now, and will not do so again."""
        if result is None or result.requires_grad or not images.requires_grad:
            return False
        if self._lifts_no_grad:
            raise UsageError(
                f"{type(self.model).__name__} cuts the gradient between the image and its features or its output, "
                "by detach() or inference_mode(). Give forward= (model, images → output) that does not."
            )
        self._lifts_no_grad = True
        return True

    def look(self, images: Tensor) -> Look:
        """One whole forward pass over untouched images, shape (N, C, H, W); features are at least float32.

        Raises:
            UsageError: a layer does not exist, is not run, or a base layer has no spatial extent.
        """
        search = None if self.base else FeatureMapSearch(self.model, images)
        captures = {layer: Capture(image_size(images), layer.call) for layer in self.base}
        if self._inversion is not None:
            captures.setdefault(self._inversion, Capture(image_size(images), self._inversion.call))
        with ExitStack() as hooks, torch.no_grad():
            if search is not None:
                hooks.enter_context(hooked(search.hooks()))
            for layer, capture in captures.items():
                argument = "layer" if layer in self.base else "inversion_layer"
                hooks.enter_context(hooked({self._module(layer, images, argument): capture}))
            output = self.raw_output(images.clone())  # because a model may work in place
        if search is not None:
            chosen = search.chosen(self._resolutions)
            if any(found.doubtful for found in chosen):
                self._settle(search, self._tried(images[:1]) or chosen, images)
                return self.look(images)
            self._settle(search, chosen, images)
            captures |= {
                found.layer: Capture(image_size(images), output=found.output, call=found.call) for found in chosen
            }
        self._calls = {layer: capture.call for layer, capture in captures.items()}
        maps = tuple(self._maps(layer, captures[layer], images) for layer in self.base)
        own = [cast(Tensor, captures[layer].output) for layer in self.base]
        self.gives_patches = any(one.shape != two.shape for one, two in zip(own, maps, strict=True))
        features = captures[self.inversion]
        if features.output is None:
            raise self._unusable(self.inversion, _why_no_maps(features), images, "inversion_layer")
        return Look(maps, at_least_float32(features.output), output)

    def _maps(self, layer: Layer, capture: Capture, images: Tensor) -> Tensor:
        maps = feature_maps(capture.output, image_size(images))
        if maps is None or len(maps) != len(images):
            raise self._unusable(layer, _why_no_maps(capture), images)
        return at_least_float32(maps)

    def gradients(self, images: Tensor, objective: Callable[[Any], Tensor]) -> tuple[Tensor, ...]:
        """The gradient of an objective with respect to each base layer's feature maps, one pass each way.

        Args:
            images: shape (N, C, H, W), untouched.
            objective: from the model's output to one number per image.

        Returns:
            Shapes (N, K, h, w), at least float32; zero where a layer has no part in the objective.

        Raises:
            UsageError: the model cuts the gradient.
        """
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            output, tapped = self._tapped(images)
            while any(self._cuts_gradient(images, one) for one in (first_tensor(output), *tapped)):
                output, tapped = self._tapped(images)
            gradients = gradients_by(tapped, objective(logits_before(self.activation, output)))
        return tuple(at_least_float32(cast(Tensor, feature_maps(one, image_size(images)))) for one in gradients)

    def _tapped(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        """The output, and what the base layers returned, as it is before others work on it in place."""
        taps = [Tap(self._calls[layer]) for layer in self.base]
        with ExitStack() as hooks:
            for layer, tap in zip(self.base, taps, strict=True):
                hooks.enter_context(hooked({self._module(layer, images): tap}))
            # A clone, because a model may work in place, which a leaf forbids.
            output = self._run(images.clone())
        return output, [cast(Tensor, tap.output) for tap in taps]

    def features(self, images: Tensor) -> Tensor:
        """The inversion layer's features, shape (N, ...); nothing behind that layer is run."""
        if _kind(images) in self.kept_bytes or not images.requires_grad:
            return self._features(images)
        self.kept_bytes[_kind(images)] = None  # as long as nothing else is known
        try:
            with _weighed(self.model) as kept:
                features = self._features(images)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):  # which a forward with torch.func's gradients does not support
                raise
            return self._features(images)
        self.kept_bytes[_kind(images)] = sum(kept.values()) / len(images)
        return features

    def bytes_per_image(self, images: Tensor) -> float | None:
        """What a pass to the inversion layer keeps in memory for its way back, by image of this size.

        None: not known, as it is before the first pass.
        """
        return self.kept_bytes.get(_kind(images))

    def _features(self, images: Tensor) -> Tensor:
        features = self._run_to_inversion_layer(images)
        if self._cuts_gradient(images, features):
            features = self._run_to_inversion_layer(images)
        return at_least_float32(features)

    def _run_to_inversion_layer(self, images: Tensor) -> Tensor:
        stop = StopAt(self._calls[self.inversion], ends=not self.is_sharded)
        output = None
        with hooked({self._module(self.inversion, images): stop}), suppress(Reached):
            output = first_tensor(self._run(images))
        if stop.output is None:
            raise RuntimeError(f"Layer {str(self.inversion)!r} was run before, and is not run now.")
        if output is None or not (output.requires_grad and stop.output.requires_grad):
            return stop.output
        return cast(Tensor, _WithPassFromOutput.apply(stop.output, output))

    def _module(self, layer: Layer, images: Tensor, argument: str = "layer") -> nn.Module:
        try:
            module = self.model.get_submodule(layer.name)
        except AttributeError:
            raise self._unusable(layer, "does not exist", images, argument) from None
        if isinstance(module, torch.jit.ScriptModule):
            raise self._unusable(layer, "is a ScriptModule, which torch.jit keeps to itself", images, argument)
        return module

    def _settle(self, search: FeatureMapSearch, chosen: list[Found], images: Tensor) -> None:
        """What was chosen becomes the base layers, from now on."""
        if not chosen:
            raise UsageError(
                f"No module of {type(self.model).__name__} gives a feature map with more than one position for "
                f"images of shape {tuple(images.shape)}: use larger images, or a network with convolutions or patches."
            )
        self._announce(search.announcement(chosen))
        self.base = tuple(found.layer for found in chosen)

    def _tried(self, image: Tensor) -> list[Found]:
        """The layers chosen by a :class:`Trial` with one image; empty where the output has no gradient."""
        image = image.detach().requires_grad_()
        with torch.enable_grad(), torch.autograd.set_detect_anomaly(False):  # NaN is on purpose in its gradients
            trial, output = self._try(image)
            while self._cuts_gradient(image, trial.last_output):
                trial, output = self._try(image)
            usable = output is not None and output.requires_grad
            return trial.chosen_between(cast(Tensor, output), self._resolutions) if usable else []

    def _try(self, image: Tensor) -> tuple[Trial, Tensor | None]:
        trial = Trial(self.model, image)
        with hooked(trial.hooks()):
            # A clone, because a model may work in place, which a leaf forbids.
            return trial, first_tensor(self._run(image.clone()))

    def _unusable(self, layer: Layer, why: str, images: Tensor, argument: str = "layer") -> UsageError:
        every = AllFeatureMaps(self.model, images[:1])
        with hooked(every.hooks()), torch.no_grad():
            self.output(images[:1])
        return UsageError(f"{argument}={str(layer)!r} {why}. Usable layers (channels × height × width):\n{every}")


def gradients_by(inputs: Sequence[Tensor], values: Tensor) -> tuple[Tensor, ...]:
    """The gradient of the sum of some values by each input; zero, with a warning, where the values have none.

    A score of the user's may be constant where there is nothing to be found, and in other images not.
    """
    if not values.requires_grad:
        warnings.warn(
            "score= returned what has no gradient, so the map does not follow it: compute it from the model's output "
            "by what can be differentiated, without argmax, comparisons or detach().",
            stacklevel=1,  # one place, so that Python says it once, whichever pass it is
        )
        return tuple(map(torch.zeros_like, inputs))
    return torch.autograd.grad(values.sum(), inputs, allow_unused=True, materialize_grads=True)


def _kind(images: Tensor) -> Kind:
    return *images.shape[1:], images.dtype


def several_ranks() -> bool:
    """Whether there are several processes: a pass of one may wait for a pass of each other, so all make as many."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def _weighed(model: nn.Module) -> Iterator[dict[int, int]]:
    """The sizes of what a forward pass keeps for its way back, in bytes, by address, without the parameters."""
    # By their shapes, because autocast saves copies of them.
    own = {shape for one in model.parameters() if one.ndim > 1 for shape in (one.shape, one.shape[::-1])}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.shape not in own:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself would hold on to the graph that holds on to it

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


class _WithPassFromOutput(torch.autograd.Function):
    """Features as they are, whose gradient takes the model's output along on its way back, with zeros.

    FSDP gathers the parameters of a part of the model when the gradient enters that part by its output. A layer
    within such a part would find them gone.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (output,) = ctx.saved_tensors
        return gradient, torch.zeros_like(output)


class _LiftedNoGrad(TorchFunctionMode):
    """Makes nothing of ``torch.no_grad()``, in which many people run a frozen backbone."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))


def _why_no_maps(capture: Capture) -> str:
    if capture.call == 0:
        return "is not run in a forward pass"
    if capture.output is None:
        return "returns no tensor of floating point numbers"
    return f"returns shape {tuple(capture.output.shape)}, which has no spatial extent"
