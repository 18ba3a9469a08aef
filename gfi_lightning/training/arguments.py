"""The callback's arguments: what cannot be right is told in the constructor."""

import inspect
import re
from collections.abc import Mapping, Sequence, Sized
from contextlib import suppress
from numbers import Number, Real
from typing import Any

from torch import Tensor, nn

from gfi_lightning.errors import UsageError, check_count, is_whole
from gfi_lightning.inversion.layers import as_layers
from gfi_lightning.recording.curves import CURVES, OF_REGIONS
from gfi_lightning.training.foreign import inner_name
from gfi_lightning.training.samples import as_indices, as_names

TARGETS = ("label", "predicted", "contrast", "present")
_NAME = re.compile(r"[\w-]+")


def check_schedule(schedule: Any, every_n_epochs: Any, every_n_steps: Any) -> None:
    """Raise UsageError for what is no schedule, or two."""
    check_count("every_n_epochs", every_n_epochs)
    if schedule is not None and schedule != "log" and not callable(schedule):
        raise UsageError(
            f"schedule={schedule!r} is unknown: use 'log', or a callable from the number of optimiser steps so far to "
            "whether to explain. For regular intervals there are every_n_epochs= and every_n_steps=."
        )
    if schedule is not None and (every_n_steps is not None or (callable(schedule) and every_n_epochs != 1)):
        raise UsageError(
            f"schedule={schedule!r} was given beside every_n_epochs={every_n_epochs} and "
            f"every_n_steps={every_n_steps}: give one of them ('log' goes with every_n_epochs)."
        )
    if every_n_steps is None:
        return
    check_count("every_n_steps", every_n_steps)
    if every_n_epochs != 1:
        raise UsageError(
            f"every_n_epochs={every_n_epochs} and every_n_steps={every_n_steps} were both given: give one of them."
        )


def check_share(argument: str, value: Any) -> None:
    """Raise UsageError for what is no share above 0, at most 1, nor None."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value <= 1):
        raise UsageError(f"{argument}={value!r} must be a share above 0 and at most 1, such as 0.02, or None.")


def check_samples(samples: Any) -> None:
    """Raise UsageError for what is neither indices nor a batch, whatever batch= makes of it."""
    empty = isinstance(samples, Sized) and not isinstance(samples, Tensor) and len(samples) == 0
    numbers = isinstance(samples, Sequence) and all(isinstance(part, Number) for part in samples)
    if as_indices(samples) is None and (empty or numbers or isinstance(samples, (str, Number))):
        raise UsageError(
            f"samples={samples!r} cannot be explained: give indices into the validation set, or (images, labels)."
        )


def check_targets(targets: Any) -> None:
    """Raise UsageError for what stands for no classes."""
    if isinstance(targets, str):
        known = targets in TARGETS
    elif isinstance(targets, Sequence):
        known = len(targets) > 0 and all(map(is_whole, targets))
    else:
        known = callable(targets) or is_whole(targets)
    if not known:
        raise UsageError(
            f"targets={targets!r} is unknown: use {', '.join(map(repr, TARGETS))}, a class index, a list of them, "
            "or a callable."
        )


def check_layer(argument: str, layer: Any) -> None:
    """Raise UsageError for what is neither a name nor a module."""
    given = (layer,) if argument == "inversion_layer" else as_layers(layer)
    if layer is None or (given and all(isinstance(one, nn.Module) or (isinstance(one, str) and one) for one in given)):
        return
    several = {"layer": " (or several, the coarsest last)", "layers": " (or several, from shallow to deep)"}
    raise UsageError(
        f"{argument}={layer!r} is no layer: give the name of one, or the module{several.get(argument, '')}, or None."
    )


def check_class_names(class_names: Any) -> None:
    """Raise UsageError for what is no list of names."""
    if class_names is not None and (isinstance(class_names, Mapping) or as_names(class_names) is None):
        raise UsageError(f"class_names={class_names!r} is no list of names: give a name for each class, in order.")


def check_callable(argument: str, value: Any, form: str) -> None:
    """Raise UsageError for what cannot be called; form says how it would be."""
    if value is not None and not callable(value):
        raise UsageError(f"{argument}={value!r} cannot be called: give a function {form}, or None.")


def check_explainer(explainer: Any, targets: Any, of_our_method: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise UsageError for what is no method of another library, or for arguments that only ours understands.

    Args:
        explainer: as it was given.
        targets: likewise.
        of_our_method: by name arguments as they were given, and their defaults.
    """
    if explainer is None:
        return
    form = "a function (model, images, targets) → maps"
    if not callable(explainer) or isinstance(explainer, type):
        raise UsageError(f"explainer={explainer!r} cannot be called for maps: give {form}, or None.")
    name = inner_name(explainer)
    if (parameters := _parameters(explainer)) is not None:
        try:
            parameters.bind(None, None, None)
        except TypeError as error:
            raise UsageError(f"explainer={name}{parameters} does not take three arguments: give {form}.") from error
    for argument, (value, default) in of_our_method.items():
        if value is not default and value != default:
            raise UsageError(
                f"{argument}={value!r} was given beside explainer={name}, whose maps do not come from guided feature "
                f"inversion, which {argument} is for: give one of them."
            )
    if isinstance(targets, str) and targets == "contrast":
        raise UsageError(
            f"targets='contrast' was given beside explainer={name}, which is told the target of each image, but not "
            "what that is contrasted with: give other targets, or leave out explainer=."
        )


def _parameters(function: Any) -> inspect.Signature | None:
    with suppress(ValueError, TypeError):  # what is written in C tells none
        return inspect.signature(function)
    return None


def check_curves(argument: str, names: Any) -> None:
    """Raise UsageError for what is no list of names of curves."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{argument}={names!r} must be a list of names of curves, such as ['preserved', 'drift'].")
    unknown = [name for name in names if name in OF_REGIONS or name.partition("/")[0] not in CURVES]
    if unknown:
        raise UsageError(
            f"{argument}={list(names)!r}: there is no curve {unknown[0]!r} to show. Use some of {', '.join(CURVES)}, "
            "the last two with a region, as in 'energy/object'."
        )


def check_name(name: Any) -> None:
    """Raise UsageError for what cannot be part of a tag and of a path."""
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise UsageError(f"name={name!r} becomes part of tags and of a folder's name: use letters, digits, _ and -.")


def check_on_error(on_error: Any) -> None:
    """Raise UsageError for what is no way to treat an error."""
    if on_error not in ("warn", "raise"):
        raise UsageError(f"on_error={on_error!r} is unknown: use 'warn' or 'raise'.")


def check_switches(**switches: Any) -> None:
    """Raise UsageError for what is neither True nor False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name}={value!r} must be True or False.")
