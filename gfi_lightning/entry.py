"""What Lightning's entry point for callbacks calls whenever a Trainer is made. Unless asked, it imports nothing."""

import os
import warnings
from typing import Any

from gfi_lightning.errors import brief

VARIABLE = "GFI_LIGHTNING"

_ON = ("1", "true", "yes", "on")
_OFF = ("", "0", "false", "no", "off")


def callbacks() -> list[Any]:
    """One more :class:`~gfi_lightning.GFICallback` for every Trainer, if ``GFI_LIGHTNING=1`` asks for it.

    Returns:
        A callback that steps aside in a Trainer that has one already, or that cannot be explained; or nothing.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in _OFF:
        return []
    if value not in _ON:
        # Not an error: a slip in a variable is no reason to end whatever program makes a Trainer.
        warnings.warn(
            f"The environment variable {VARIABLE}={os.environ[VARIABLE]!r} is neither on nor off, and adds no "
            "GFICallback: set it to 1, and every Trainer gets one, or to 0.",
            stacklevel=2,
        )
        return []
    try:
        from gfi_lightning.training.added import AddedCallback
    except Exception as error:  # whatever is wrong with this environment's libraries
        warnings.warn(f"{VARIABLE}={value} adds no GFICallback, as it cannot be imported: {brief(error)}", stacklevel=2)
        return []
    return [AddedCallback()]
