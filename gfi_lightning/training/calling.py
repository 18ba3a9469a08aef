"""How a LightningModule is called on images, where that is not simply ``module(images)``."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torchmetrics import Metric

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.network import Forward
from gfi_lightning.inversion.scores import first_tensor
from gfi_lightning.training.batches import IMAGE_NAMES, Form, image_name

_TAKES_THE_BATCH = ("batch", "sample", "samples")  # names of parameters
_FEW = 2  # images to try with: of one alone, an output does not tell whether it has a row for each
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """One way to call a module on images (N, C, H, W), to be given as ``forward=``.

    Attributes:
        forward: the user's (module, images) → output; None: the module, or its part, is called.
        part: the name of the part that is called instead of the module; "" for the module.
        keyword: the argument that takes the images; None: the first.
        form: of the batch in which the images are handed over, without labels; None: as they are.
        channels_last: whether they are handed over as (N, H, W, C).
    """

    forward: Forward | None = None
    part: str = ""
    keyword: str | None = None
    form: Form | None = None
    channels_last: bool = False

    def __call__(self, module: nn.Module, images: Tensor) -> Any:
        """The output."""
        images = images.permute(0, 2, 3, 1) if self.channels_last else images
        if self.forward is not None:
            return self.forward(module, images)
        called = module.get_submodule(self.part) if self.part else module
        given = images if self.form is None else self.form.holding(images)
        return called(given) if self.keyword is None else called(**{self.keyword: given})

    @property
    def is_plain(self) -> bool:
        """Whether it is ``module(images)``."""
        return self == Call()

    def __str__(self) -> str:
        images = "images (N, H, W, C)" if self.channels_last else "images"
        given = images if self.form is None else f"a batch with nothing but {images}"
        what = "forward=" if self.forward is not None else f"self.{self.part}" if self.part else "the module"
        return f"{what}({'' if self.keyword is None else f'{self.keyword}='}{given})"


def find_call(module: nn.Module, images: Tensor, batch: Any, forward: Forward | None, channels_last: bool) -> Call:
    """How to call a module, from what its forward says of itself; and where it says too little, by trying.

    Args:
        module: the LightningModule, in which a forward pass disturbs nothing.
        images: shape (N, C, H, W).
        batch: that they are from, or None where only the user knows how.
        forward: the user's.
        channels_last: whether the batch has them as (N, H, W, C).

    Raises:
        UsageError: the module has no forward of its own, and several networks that could be meant.
    """
    part = "" if forward is not None or _has_forward(module) else _only_network(module)
    if forward is not None:
        calls = [Call(forward)]
    else:
        calls = _calls(part, _parameters(module.get_submodule(part) if part else module, part), batch)
    if channels_last:
        calls = [replace(call, channels_last=last) for last in (True, False) for call in calls]
    return calls[0] if len(calls) == 1 else _first_that_works(calls, module, images[:_FEW])


def _first_that_works(calls: list[Call], module: nn.Module, images: Tensor) -> Call:
    """The first call that returns a row for each image; one with images where none does, which will tell why."""
    for call in calls:
        try:
            with torch.no_grad():
                output = first_tensor(call(module, images))
        except Exception:  # whatever a forward does to what it does not expect
            continue
        if output is not None and output.ndim > 0 and len(output) == len(images):
            return call
    return next(call for call in calls if call.form is None)


def _calls(part: str, parameters: Mapping[str, inspect.Parameter], batch: Any) -> list[Call]:
    """The ways to call a forward that has these parameters, the likeliest first."""
    first = next((one for one in parameters.values() if one.kind in _POSITIONAL), None)
    key = image_name(batch) if isinstance(batch, Mapping) else None
    names = [name for name in (key, *IMAGE_NAMES) if name in parameters]
    plain, whole = Call(part=part), Call(part=part, form=Form.of(batch))
    kinds = {one.kind for one in parameters.values()}
    if first is None and key is not None and inspect.Parameter.VAR_KEYWORD in kinds:
        by_name = Call(part=part, keyword=str(key))  # forward(**batch)
        return [plain, by_name, whole] if inspect.Parameter.VAR_POSITIONAL in kinds else [by_name]
    if first is not None and first.name in names and key in (None, first.name):
        return [plain]
    if names and (first is None or first.default is not first.empty):
        return [Call(part=part, keyword=str(names[0]))]
    if batch is None or isinstance(batch, Tensor):
        return [plain]
    if first is not None and first.name in _TAKES_THE_BATCH:
        return [whole, plain]
    return [plain, whole] if isinstance(batch, Mapping) else [plain]


def _parameters(called: nn.Module, part: str) -> Mapping[str, inspect.Parameter]:
    """Those of a module's forward; empty where they cannot be told."""
    called = getattr(called, "_orig_mod", called)  # of a compiled one
    own = vars(called).get("forward") if getattr(called, "_compiler_ctx", None) is None else None
    try:
        parameters = inspect.signature(own or type(called).forward).parameters
    except (TypeError, ValueError):
        return {}
    return parameters if own is not None else dict(list(parameters.items())[1:])


def _has_forward(module: nn.Module) -> bool:
    """Whether a LightningModule has a forward of its own, or got one."""
    inherited = getattr(type(module).forward, "__module__", "").endswith("core.module")
    assigned = "forward" in vars(module) and getattr(module, "_compiler_ctx", None) is None
    return assigned or not inherited


def _only_network(module: nn.Module) -> str:
    """The name of a module's only part that has parameters and is no metric, no loss and no average of another.

    Raises:
        UsageError: there is none, or there are several, or the module has parameters beside it.
    """
    names = [name for name, part in module.named_children() if _is_network(part)]
    beside = [name for name, _ in module.named_parameters(recurse=False)]
    if len(names) == 1 and not beside:
        return names[0]
    kind = type(module).__name__
    if len(names) == 1:
        raise UsageError(
            f"{kind} has no forward(), and what self.{beside[0]} does to the output of self.{names[0]} it does not "
            "say: write forward(self, images), or give forward= (module, images → logits), whatever training_step does."
        )
    if not names:
        raise UsageError(
            f"{kind} has no forward(), and no network in an attribute: give forward= (module, images → logits)."
        )
    calls = " or ".join(f"forward=lambda module, images: module.{name}(images)" for name in names[:2])
    raise UsageError(
        f"{kind} has no forward(), and which of {', '.join(f'self.{name}' for name in names)} gives the logits, or in "
        f"what order, it does not say: write forward(self, images), or give {calls}, or whatever training_step does."
    )


def _is_network(part: nn.Module) -> bool:
    beside = isinstance(part, (Metric, _Loss, torch.optim.swa_utils.AveragedModel)) or "Loss" in type(part).__name__
    return not beside and next(part.parameters(), None) is not None
