"""From a model's output to the score of a target."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from gfi_lightning.errors import UsageError

ScoreFunction = Callable[[Any, Tensor], Tensor]
_SCORES = ("softmax", "sigmoid")
_LOGITS = ("logits", "class_logits", "output", "outputs", "out", "pred", "preds", "prediction", "predictions", "y_hat")
_NAMED = (*_LOGITS, "last_hidden_state")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where its type is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def first_tensor(output: Any) -> Tensor | None:
    """The first floating tensor in an output that may be a tensor, a tuple, a mapping or an object.

    A single number, such as the loss, does not count. In a mapping, a named tuple or a dataclass what is called
    ``logits``, ``output`` and the like comes first; of other objects ``logits`` and ``last_hidden_state`` do.
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if (names := _by_name(output)) is not None:
        parts = [*(names[name] for name in _NAMED if name in names), *names.values()]
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    else:
        parts = [getattr(output, name, None) for name in ("logits", "last_hidden_state")]
        return next((part for part in parts if isinstance(part, Tensor)), None)
    return _first_of(part for part in parts if not (isinstance(part, Tensor) and part.ndim == 0))


def _by_name(output: Any) -> Mapping[Any, Any] | None:
    if isinstance(output, Mapping):
        return output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return None


def _first_of(parts: Any) -> Tensor | None:
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def describe(value: Any) -> str:
    """What a value is, in a few words, for error messages: types and shapes, no contents."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(describe(part) for part in value[:4]) + (", …" if len(value) > 4 else "")
        return f"{type(value).__name__}({inner})"
    return type(value).__name__


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output, shape (N, classes), at least float32.

    Args:
        output: a tensor (N, classes), (N,) for a single logit, or with trailing axes of size 1; or a tuple,
            a mapping or an object with ``.logits`` that holds one.

    Raises:
        UsageError: there are none in it.
    """
    _check_names(output)
    logits = first_tensor(output)
    if logits is not None and logits.ndim > 2 and all(size == 1 for size in logits.shape[2:]):
        logits = logits.flatten(1)
    if logits is not None and logits.ndim == 1:
        logits = logits[:, None]
    if logits is None or logits.ndim != 2:
        raise UsageError(
            f"The model's output is {describe(output)}; expected are logits of shape (N, classes). "
            "Return them alone, in a tuple, in a dict or as .logits, "
            "or give forward= (images → logits) or score= (output, targets → one number each)."
        )
    return at_least_float32(logits)


def _check_names(output: Any) -> None:
    """Raise UsageError where nothing tells which part of an output are the logits.

    Without names the first one counts, unless another is narrower: features are mostly wider than the logits.
    """
    names = _by_name(output) or {}
    if any(name in names for name in _NAMED):
        return
    is_ordered = isinstance(output, (tuple, list))
    parts = dict(enumerate(output)) if is_ordered else names
    several = {name: part.shape for name, part in parts.items() if isinstance(part, Tensor) and part.ndim == 2}
    rows, width = next(iter(several.values()), (0, 0))
    narrower = [name for name, shape in several.items() if shape[0] == rows and shape[1] < width]
    if is_ordered and narrower:
        raise UsageError(
            f"The model's output is {describe(output)}; which of the parts {', '.join(map(str, several))} are the "
            "logits of the classes? Return them first, with nothing narrower behind, or by the name of 'logits'; or "
            f"give forward=, such as lambda module, images: module(images)[{narrower[0]}]."
        )
    if len(several) > 1 and not is_ordered:
        raise UsageError(
            f"The model's output is {describe(output)}; which of {', '.join(map(repr, several))} are the logits of the "
            "classes? Call them 'logits', or give forward= (images → logits)."
        )


def class_probabilities(output: Any, score: str) -> Tensor:
    """The probability of each class, shape (N, classes).

    Args:
        output: see :func:`logits_of`.
        score: "softmax", or "sigmoid" for independent labels. A single logit is a choice between two classes under
            both: class 1 has σ(logit), class 0 has σ(−logit).
    """
    logits = _class_logits(output, score)
    return logits.sigmoid() if score == "sigmoid" else logits.softmax(1)


def _class_logits(output: Any, score: str) -> Tensor:
    logits = logits_of(output)
    if logits.shape[1] > 1:
        return logits
    # What class 0 lacks: softmax sees nothing but the difference between both.
    return torch.cat([torch.zeros_like(logits) if score == "softmax" else -logits, logits], 1)


def check_score(score: str | ScoreFunction) -> None:
    """Raise UsageError for a score that is neither known nor callable."""
    if not callable(score) and score not in _SCORES:
        raise UsageError(
            f"score={score!r} is unknown: use one of {', '.join(_SCORES)}, "
            "or a callable from the model's output and the targets (N,) to one number each (N,)."
        )


def target_scores(output: Any, targets: Tensor, score: str | ScoreFunction, against: Tensor | None = None) -> Tensor:
    """The score of each target, f_c of equation 9.

    Args:
        output: the model's output for N images.
        targets: shape (N,), int64.
        score: "softmax", "sigmoid" or a callable.
        against: shape (N,), int64: the score is then the target's probability if it were either of the two,
            σ(logit of the target − logit of the other), which for a single logit is its plain probability; under a
            callable, the difference of the two scores.

    Returns:
        Shape (N,), at least float32.

    Raises:
        UsageError: a callable returns another shape.
    """
    if callable(score):
        scores = _called(score, output, targets)
        return scores if against is None else scores - _called(score, output, against)
    if against is not None:
        return _margin(output, targets, against, score).sigmoid()
    return class_probabilities(output, score).gather(1, targets[:, None]).squeeze(1)


def _called(score: ScoreFunction, output: Any, targets: Tensor) -> Tensor:
    scores = score(output, targets)
    if not isinstance(scores, Tensor) or scores.shape != targets.shape:
        raise UsageError(
            f"score= returned {describe(scores)}; expected is one number for each of the {len(targets)} "
            f"targets, a tensor of shape {tuple(targets.shape)}."
        )
    return at_least_float32(scores)


def _margin(output: Any, targets: Tensor, against: Tensor, score: str) -> Tensor:
    logits = _class_logits(output, score)
    margin = (logits.gather(1, targets[:, None]) - logits.gather(1, against[:, None])).squeeze(1)
    # A single logit z says all about both classes: each of z and −z is a margin already.
    return margin / 2 if score == "sigmoid" and logits_of(output).shape[1] == 1 else margin


def log_odds(output: Any, targets: Tensor, score: str | ScoreFunction, against: Tensor | None = None) -> Tensor:
    """Log p / (1 − p) of each target's probability p, whose gradient does not vanish near p = 1.

    Args and errors as in :func:`target_scores`; a callable score is taken as it is.
    """
    if callable(score):
        return target_scores(output, targets, score, against)
    if against is not None:
        return _margin(output, targets, against, score)
    logits = _class_logits(output, score)
    of_target = logits.gather(1, targets[:, None])
    if score == "softmax":  # against all other classes together
        of_target = of_target - logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1, keepdim=True)
    return of_target.squeeze(1)


def predicted_classes(output: Any, score: str | ScoreFunction) -> Tensor:
    """The class with the highest score, under a callable the highest logit, shape (N,), int64.

    Raises:
        UsageError: there are no logits in the output; or under a callable a single one, as of a regression.
    """
    if not callable(score):
        return class_probabilities(output, score).argmax(1)
    logits = logits_of(output)
    if logits.shape[1] == 1:
        raise UsageError(f"The model's output is {describe(output)}, which under a score of its own tells no class.")
    return logits.argmax(1)


def check_targets(targets: Tensor, output: Any, score: str | ScoreFunction, argument: str = "targets") -> None:
    """Raise UsageError where a target is not one of the model's classes (not known for a callable score)."""
    if callable(score) or targets.numel() == 0:
        return
    classes = _class_logits(output, score).shape[1]
    low, high = torch.stack(targets.aminmax()).tolist()  # a GPU is waited for once
    if low < 0 or high >= classes:
        raise UsageError(
            f"{argument} reach from {low} to {high}, but the model has {classes} classes: "
            f"use {argument} from 0 to {classes - 1}."
        )


@dataclass(frozen=True)
class Question:
    """What is asked about some of the images of an output: why this class, or why this one rather than that?

    Attributes:
        rows: shape (P,), int64: whose image each target is about; an image may come several times.
        targets: shape (P,), int64.
        against: shape (P,), int64: the class that the target is contrasted with; None: all others.
    """

    rows: Tensor
    targets: Tensor
    against: Tensor | None = None

    def __getitem__(self, some: Tensor | slice) -> "Question":
        return Question(self.rows[some], self.targets[some], None if self.against is None else self.against[some])

    def repeated(self, times: int) -> "Question":
        """The same about several versions of the images, one behind the other."""
        against = None if self.against is None else self.against.repeat(times)
        return Question(self.rows.repeat(times), self.targets.repeat(times), against)


def scores_of_rows(output: Any, count: int, question: Question, score: str | ScoreFunction) -> Tensor:
    """The scores that are asked for.

    Args:
        output: the model's output for ``count`` images, in any form.
        count: the number of images.
        question: about them.
        score: see :func:`target_scores`.

    Returns:
        Shape (P,), at least float32.
    """
    if not callable(score):
        return target_scores(logits_of(output)[question.rows], question.targets, score, question.against)
    # A callable takes the whole output, one target per image: so it is asked once for each image's first
    # target, once for each second, and so on.
    turns = _turns(question.rows)
    asked = [(turns == turn).nonzero().flatten() for turn in range(int(turns.max()) + 1)]
    answers = []
    for now in asked:
        part = question[now]
        everyone, everyones_other = (
            None if classes is None else classes.new_zeros(count).index_put((part.rows,), classes)
            for classes in (part.targets, part.against)
        )
        assert everyone is not None
        answers.append(target_scores(output, everyone, score, everyones_other)[part.rows])
    return torch.cat(answers)[torch.cat(asked).argsort()]


def _turns(rows: Tensor) -> Tensor:
    """How often each row's image was mentioned before."""
    mentions: Counter[int] = Counter()
    turns = []
    for row in rows.tolist():
        turns.append(mentions[row])
        mentions[row] += 1
    return torch.tensor(turns, device=rows.device)
