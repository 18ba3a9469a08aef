"""How images were normalised, to show them as they were: found where people keep it, and never guessed."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gfi_lightning.recording.images import in_unit_range, undone
from gfi_lightning.training.dataset_info import format_transform, is_users, with_wrapped

_NAMES = (("mean", "std"), ("image_mean", "image_std"), ("pixel_mean", "pixel_std"))
_MOST_CHANNELS = 16
_DEEPEST = 10  # steps from a data set or a module to its normalisation
_MANY = 64  # parts of a container: more are data, and no transforms
_MOST_LOOKED_AT = 2000
_RANDOM = {"RandomApply", "RandomChoice", "OneOf", "SomeOf"}  # of their parts nobody knows which were applied
_OF_TRANSFORMS = {"albumentations", "kornia", "torchvision"}  # whose p is the probability of being applied
_OVERSHOOT = 0.05  # beyond [0, 1], as half precision and resizing may cause; and of resizing even more, for
_FEW = 0.01  # of the pixels
_MOST = 0.6  # of [0, 1]: images in [−1, 1] by the deviation of another data set, 0.2 to 0.27, make up to 0.54
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_BEFORE_OTHERS = ("val", "eval", "test", "transform", "normal", "preprocess", "processor", "aug")  # in names
_OF_TRAINING = re.compile(r"((?<![A-Za-z])train|Train|TRAIN)(ing|ING)?(?![a-z])")  # and not pretrained
_UNSAID = ("", "transforms")  # of a Compose
_EVERYTHING = {"_trainer", "trainer", "_fabric"}  # who reach everything, and nothing of the data
_ATOMS = (str, bytes, int, float, complex, type(None), type, ModuleType, Tensor, torch.dtype, torch.device)


class Normalization(NamedTuple):
    """(x − mean) / std, per channel.

    Attributes:
        mean: of each channel, or one for all.
        std: likewise.
        place: where it was found, in words.
    """

    mean: list[float]
    std: list[float]
    place: str = ""

    @property
    def is_usual(self) -> bool:
        """Whether it lies where torchvision's data sets have theirs, of which nobody needs to be told."""
        return self.place.partition(".")[2] in ("transform", "transforms")

    def fits(self, images: Tensor) -> bool:
        """Whether images (N, C, H, W) are likely those that were normalised so.

        Undone, their pixels lie in [0, 1], but for a few, and take up most of that in one channel at least.
        """
        if len(self.mean) not in (1, images.shape[1]):
            return False
        before = undone(images, self.mean, self.std)
        beyond = (before < -_OVERSHOOT) | (before > 1 + _OVERSHOOT)
        shown = before.clamp(0, 1)
        covered = (shown.amax((0, 2, 3)) - shown.amin((0, 2, 3))).amax()
        return bool(beyond.float().mean() <= _FEW) and bool(covered >= _MOST)

    def then(self, other: "Normalization") -> "Normalization":
        """Both of them as one, the other after this one."""
        count = max(len(self.mean), len(other.mean))
        (mean, std), (next_mean, next_std) = (
            (list(values) * (count // len(values)) for values in one[:2]) for one in (self, other)
        )
        means = [m + s * n for m, s, n in zip(mean, std, next_mean, strict=True)]
        return Normalization(means, [s * n for s, n in zip(std, next_std, strict=True)], self.place)


def normalizations(loader: Any, hooked: Iterable[Any]) -> Iterator[Normalization]:
    """All that can be found, the likelier ones first; none of them is more than a guess, see :meth:`fits`.

    Args:
        loader: of the samples, or None: whatever its data set and its collate function can reach.
        hooked: the data module and the LightningModule, whose transfer hooks may normalise on the device.
    """
    datasets = list(with_wrapped(getattr(loader, "dataset", None)))
    for depth, dataset in enumerate(datasets):
        kind = type(dataset)
        # Not yet of those that it wraps: what it does itself came last.
        yield from _within(format_transform(dataset), "the data set's transform")
        yield from _within(dataset, kind.__name__, apart=datasets[depth + 1 :])
        yield from _within(getattr(kind, "__getitem__", None), kind.__name__, apart=datasets[depth + 1 :])
    yield from _within(getattr(loader, "collate_fn", None), "collate_fn")
    for one in hooked:
        yield from _within(one, type(one).__name__)
        for name in _HOOKS:
            yield from _within(getattr(type(one), name, None), f"{type(one).__name__}.{name}")


def fitting_normalization(candidates: Iterable[Normalization], images: Tensor) -> Normalization | None:
    """The first that images (N, C, H, W) can have gone through; None where that is none, or they are within [0, 1]."""
    # Within [0, 1], they are as they were: a module may keep a normalisation for its forward.
    return None if in_unit_range(images) else next((one for one in candidates if one.fits(images)), None)


def _within(thing: Any, place: str, apart: Iterable[Any] = ()) -> Iterator[Normalization]:
    """All normalisations that can be reached from something, the nearest first, without running anything of it.

    Args:
        thing: where to begin.
        place: what it is called.
        apart: what is not looked into.
    """
    waiting, seen = [(thing, place)], {id(None), *map(id, apart)}
    for _ in range(_DEEPEST):
        further = []
        for one, where in waiting:
            if id(one) in seen or isinstance(one, _ATOMS) or len(seen) > _MOST_LOOKED_AT:
                continue
            seen.add(id(one))
            try:
                found, parts = _normalization(one, where), [] if _is_random(one) else _parts(one)
            except Exception:  # whatever a stranger does when it is looked at
                continue
            if found is not None:
                yield found
            further += [
                (part, f"{where}.{name}" if name not in _UNSAID else where)
                for name, part in parts
                if not _OF_TRAINING.search(name)
            ]
        waiting = further


def _is_random(thing: Any) -> bool:
    """Whether it is a transform that is only perhaps applied."""
    kind = type(thing)
    chance = _plain(thing, "p") if kind.__module__.partition(".")[0] in _OF_TRANSFORMS else None
    return kind.__name__ in _RANDOM or (isinstance(chance, (int, float)) and chance < 1)


def _normalization(thing: Any, place: str) -> Normalization | None:
    """By what something normalises; steps one after the other together."""
    steps = list(thing) if isinstance(thing, (list, tuple, nn.Sequential)) and len(thing) <= _MANY else [thing]
    own = [Normalization(*found, place) for step in steps if not _is_random(step) and (found := _own(step))]
    return reduce(Normalization.then, own) if own else None


def _own(thing: Any) -> tuple[list[float], list[float]] | None:
    """What a transform, an image processor, a module or a mapping normalises by; None where it does not."""
    # Albumentations also normalises each image by its own values, which nothing tells afterwards.
    if _plain(thing, "do_normalize") is False or _plain(thing, "normalization") not in (None, "standard"):
        return None
    for pair in _NAMES:
        mean, std = (_floats(_plain(thing, name)) for name in pair)
        if mean and std and len(mean) == len(std) and min(std) > 0:
            return mean, std
    return None


def _plain(thing: Any, name: str) -> Any:
    """An attribute, or a buffer, that is simply there: properties, which may compute anything, are not asked."""
    if isinstance(thing, dict):
        return thing.get(name)
    if isinstance(thing, nn.Module) and name in thing._buffers:
        return thing._buffers[name]
    own = getattr(thing, "__dict__", {})
    found = own[name] if name in own else getattr_static(type(thing), name, None)
    return None if hasattr(found, "__get__") else found


def _floats(values: Any) -> list[float] | None:
    if isinstance(values, (str, bytes)) or not (isinstance(values, Sequence) or hasattr(values, "__array__")):
        return None
    try:
        flat = torch.as_tensor(values).flatten()
    except (TypeError, ValueError, RuntimeError):
        return None
    is_usable = 0 < flat.numel() <= _MOST_CHANNELS and not flat.is_complex() and not flat.is_meta
    return [float(value) for value in flat] if is_usable else None


def _parts(thing: Any) -> list[tuple[str, Any]]:
    """What something is made of, by names, the likelier ones first; not of networks, nor of what is random."""
    if isinstance(thing, (list, tuple, set)):
        return [("", part) for part in thing] if len(thing) <= _MANY else []
    if isinstance(thing, Mapping):
        return _likely_first({str(key): part for key, part in thing.items()}) if len(thing) <= _MANY else []
    if isinstance(thing, partial):
        return [("", thing.func), *(("", part) for part in thing.args), *_likely_first(thing.keywords)]
    if isinstance(thing, MethodType):
        return [("", thing.__self__), ("", thing.__func__)]
    if isinstance(thing, FunctionType):
        return _likely_first(_variables(thing))
    own = dict(getattr(thing, "__dict__", {}))
    if isinstance(thing, nn.Module):
        own.update(thing._modules)
        is_lightning = any(base.__name__ == "LightningModule" for base in type(thing).__mro__)
        if not is_lightning and next(thing.parameters(), None) is not None:
            return []
    return _likely_first({name: part for name, part in own.items() if name not in _EVERYTHING})


def _likely_first(parts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    def rank(name: str) -> int:
        likely = (place for place, part in enumerate(_BEFORE_OTHERS) if part in name)
        return min(likely, default=len(_BEFORE_OTHERS))

    return sorted(parts.items(), key=lambda item: rank(item[0].lower()))


def _variables(function: FunctionType) -> dict[str, Any]:
    """The variables around a function of the user's: those of its closure, and the globals that it names."""
    if not is_users(function):
        return {}
    found = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    inner = {name: _content(cell) for name, cell in found.items()}
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    return {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())} | inner


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing has been assigned yet
        return None
