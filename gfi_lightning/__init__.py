"""See what a model looks at while it trains."""

from typing import TYPE_CHECKING, Any

from gfi_lightning.errors import UsageError
from gfi_lightning.inversion.guided import GuidedFeatureInversion
from gfi_lightning.inversion.recipes import Recipe
from gfi_lightning.inversion.results import Explanation
from gfi_lightning.recording.history import History

if TYPE_CHECKING:
    from gfi_lightning.training.callback import GFICallback

__all__ = ["Explanation", "GFICallback", "GuidedFeatureInversion", "History", "Recipe", "UsageError"]


def __getattr__(name: str) -> Any:
    # The method and the history work without Lightning, whose import takes seconds.
    if name == "GFICallback":
        from gfi_lightning.training.callback import GFICallback

        return GFICallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
