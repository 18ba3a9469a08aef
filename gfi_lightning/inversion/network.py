"""The explained network, seen as the method sees it: feature maps, features, and an output."""

import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.layers import (
    AllFeatureMaps,
    Capture,
    LastFeatureMap,
    Reached,
    StopAt,
    feature_maps,
    hooked,
    image_size,
    module_name,
)
from gfi_lightning.inversion.scores import first_tensor
from gfi_lightning.logs import logger

Forward = Callable[[nn.Module, Tensor], Any]


class Network:
    """Runs a model for the method, and knows its base layer and its inversion layer.

    Args:
        model: the model, in eval mode whenever it is run.
        layer: the base layer; None: found in the first :meth:`look`.
        inversion_layer: None: the base layer.
        forward: (model, images) → output; None: ``model(images)``.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None,
        inversion_layer: str | nn.Module | None,
        forward: Forward | None,
    ) -> None:
        self.model = model
        self.layer = None if layer is None else module_name(model, layer)
        self._inversion_layer = (
            None if inversion_layer is None else module_name(model, inversion_layer, "inversion_layer")
        )
        self._inversion_call = 0
        self._forward = forward
        self._lifts_no_grad = False

    def output(self, images: Tensor) -> Any:
        """The model's output.

        Raises:
            UsageError: a gradient is needed, and the model cuts it.
        """
        output = self._run(images)
        return self._run(images) if self._cuts_gradient(images, first_tensor(output)) else output

    def _run(self, images: Tensor) -> Any:
        with _LiftedNoGrad() if self._lifts_no_grad else nullcontext():
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

    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Any]:
        """One whole forward pass over untouched images.

        Args:
            images: shape (N, C, H, W).

        Returns:
            The base layer's feature maps, shape (N, K, h, w); the inversion layer's features, shape (N, ...);
            both at least float32; and the model's output.

        Raises:
            UsageError: a layer does not exist, is not run, or the base layer has no spatial extent.
        """
        base = LastFeatureMap(self.model, images) if self.layer is None else Capture(image_size(images))
        inversion = base if self._inversion_layer is None else Capture(image_size(images))
        with ExitStack() as hooks, torch.no_grad():
            if isinstance(base, LastFeatureMap):
                hooks.enter_context(hooked(base.hooks()))
            else:
                hooks.enter_context(hooked({self._module(self.layer, images): base}))
            if self._inversion_layer is not None:
                hooks.enter_context(hooked({self._module(self._inversion_layer, images, "inversion_layer"): inversion}))
            output = self.output(images)
        if isinstance(base, LastFeatureMap):
            self.layer = self._announced(base, images)
        maps = feature_maps(base.output, image_size(images))
        if maps is None or len(maps) != len(images):
            raise self._unusable(self.layer, _why_no_maps(base), images)
        if inversion.output is None:
            raise self._unusable(self._inversion_layer, _why_no_maps(inversion), images, "inversion_layer")
        self._inversion_call = inversion.call
        return _at_least_float32(maps), _at_least_float32(inversion.output), output

    def features(self, images: Tensor) -> Tensor:
        """The inversion layer's features, shape (N, ...); nothing behind that layer is run."""
        features = self._run_to_inversion_layer(images)
        if self._cuts_gradient(images, features):
            features = self._run_to_inversion_layer(images)
        return _at_least_float32(features)

    def _run_to_inversion_layer(self, images: Tensor) -> Tensor:
        stop = StopAt(self._inversion_call, ends=not _is_sharded(self.model))
        with hooked({self._module(self._inversion_layer or self.layer, images): stop}), suppress(Reached):
            self._run(images)
        if stop.output is None:
            raise RuntimeError(f"Layer {self._inversion_layer or self.layer!r} was run before, and is not run now.")
        return stop.output

    def _module(self, name: str | None, images: Tensor, argument: str = "layer") -> nn.Module:
        for candidate, module in self.model.named_modules():
            if candidate == name and isinstance(module, torch.jit.ScriptModule):
                raise self._unusable(name, "is a ScriptModule, which torch.jit keeps to itself", images, argument)
            if candidate == name:
                return cast(nn.Module, module)
        raise self._unusable(name, "does not exist", images, argument)

    def _announced(self, search: LastFeatureMap, images: Tensor) -> str:
        if search.name is None:
            raise UsageError(
                f"No module of {type(self.model).__name__} gives a feature map with more than one position for "
                f"images of shape {tuple(images.shape)}: use larger images, or a network with convolutions or patches."
            )
        logger.info(search.announcement())
        return search.name

    def _unusable(self, name: str | None, why: str, images: Tensor, argument: str = "layer") -> UsageError:
        every = AllFeatureMaps(self.model, images[:1])
        with hooked(every.hooks()), torch.no_grad():
            self.output(images[:1])
        return UsageError(f"{argument}={name!r} {why}. Usable layers (channels × height × width):\n{every}")


def _is_sharded(model: nn.Module) -> bool:
    """Whether FSDP takes a model's passes through their stages, none of which must be left out."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, not used
    return fsdp is not None and any(isinstance(part, fsdp.FSDPModule) for part in model.modules())


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


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
