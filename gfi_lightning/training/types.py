"""The types of the callback's arguments, for type checkers and, in words that it can act on, for LightningCLI."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

__all__ = [
    "BackgroundLike",
    "Forward",
    "LayerLike",
    "Layers",
    "MapFunction",
    "OnError",
    "RecipeName",
    "Regions",
    "SamplesLike",
    "ScheduleLike",
    "ScoreLike",
    "SplitBatch",
    "TargetsLike",
]

if TYPE_CHECKING:
    from gfi_lightning.inversion.backgrounds import Background
    from gfi_lightning.inversion.layers import LayerLike
    from gfi_lightning.inversion.network import Forward
    from gfi_lightning.inversion.scores import ScoreFunction
    from gfi_lightning.training.batches import SplitBatch
    from gfi_lightning.training.foreign import MapFunction
    from gfi_lightning.training.regions import Regions
    from gfi_lightning.training.schedule import Steps
    from gfi_lightning.training.share import TargetChoice

    Layers = LayerLike | Sequence[LayerLike]
else:
    # jsonargparse, which is behind LightningCLI, takes a class within a type for something that can be made from a
    # config: it would list every nn.Module and every kind of Tensor in its help, and refuse a function that does not
    # say what it returns. In a config a layer is a name, and a function is where it can be imported from.
    LayerLike = str
    Layers = str | Sequence[str]
    Background = Forward = MapFunction = ScoreFunction = SplitBatch = Steps = TargetChoice = Callable[..., Any]
    Regions = Mapping[str, Any] | Callable[..., Any]

SamplesLike = Sequence[int] | Any
ScheduleLike = Literal["log"] | Steps
TargetsLike = Literal["label", "predicted", "contrast", "present"] | int | list[int] | TargetChoice
RecipeName = Literal["default", "paper", "release"]
BackgroundLike = Literal["blur", "mean", "noise"] | Background
ScoreLike = Literal["softmax", "sigmoid"] | ScoreFunction
OnError = Literal["warn", "raise"]
