"""See what a model looks at while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gfi_lightning.errors import UsageError

if TYPE_CHECKING:
    from gfi_lightning.inversion.guided import GuidedFeatureInversion
    from gfi_lightning.inversion.recipes import Recipe
    from gfi_lightning.inversion.results import Explanation
    from gfi_lightning.recording.history import History
    from gfi_lightning.training.callback import GFICallback
    from gfi_lightning.training.replay import replay

__all__ = ["Explanation", "GFICallback", "GuidedFeatureInversion", "History", "Recipe", "UsageError", "replay"]

# Imported when they are asked for: the method and the history work without Lightning, and the command line is
# quick to answer without torch, whose imports take seconds.
_HOMES = {
    "Explanation": "inversion.results",
    "GFICallback": "training.callback",
    "GuidedFeatureInversion": "inversion.guided",
    "History": "recording.history",
    "Recipe": "inversion.recipes",
    "replay": "training.replay",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "GFICallback":
        from gfi_lightning.training.internals import be_callback_of_both

        be_callback_of_both(found)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
