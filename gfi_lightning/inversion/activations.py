"""Models that end in softmax or sigmoid: from the probabilities that they return back to the logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.scores import first_tensor, logits_of

_ROUNDING = 1e-5
_RESHAPES = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy", "Clone", "Alias")


def activation_of(output: Any, traced: Callable[[], Any]) -> str | None:
    """The activation that a model ends in, by its output for some images.

    Args:
        output: see :func:`~gfi_lightning.inversion.scores.logits_of`.
        traced: makes the output for one image once more, with a graph: it tells a sigmoid from small logits, and is
            called where all values lie in [0, 1] and do not share 1.

    Returns:
        "softmax", "sigmoid", or "" for none; None where values are not finite, and tell nothing.
    """
    tensor = first_tensor(output)
    if tensor is None or tensor.numel() == 0:
        return ""
    low, high = torch.stack(tensor.detach().aminmax()).tolist()  # a GPU is waited for once
    if not (low >= 0 and high <= 1 + _ROUNDING):
        return "" if low < 0 or high > 1 else None
    try:
        values = logits_of(output)
    except UsageError:  # whoever needs logits will tell
        return ""
    rounding = max(torch.finfo(tensor.dtype).eps, _ROUNDING)
    if values.shape[1] > 1 and bool(((values.sum(1) - 1).abs() <= rounding).all()):
        return "softmax"
    return "sigmoid" if _ends_in_sigmoid(first_tensor(traced())) else ""


def logits_before(activation: str | None, output: Any) -> Any:
    """What went into the activation, shape (N, classes), of a softmax up to a constant; without one, the output.

    Args:
        activation: see :func:`activation_of`.
        output: of the model.
    """
    if not activation:
        return output
    probabilities = logits_of(output)
    limits = torch.finfo(probabilities.dtype)
    logarithms = probabilities.clamp(min=limits.tiny).log()
    if activation == "softmax":
        return logarithms
    return logarithms - torch.log1p(-probabilities.clamp(max=1 - limits.eps / 2))


def _ends_in_sigmoid(output: Tensor | None) -> bool:
    node = None if output is None else output.grad_fn
    while node is not None and node.name().startswith(_RESHAPES) and node.next_functions:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("SigmoidBackward")
