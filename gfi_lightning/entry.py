"""What Lightning's entry point for callbacks calls whenever a Trainer is made. Unless asked, it imports nothing."""

import os
import warnings
from typing import Any

from gfi_lightning.errors import UsageError, brief

VARIABLE = "GFI_LIGHTNING"

_ON = ("1", "true", "yes", "on")
_OFF = ("", "0", "false", "no", "off")


def callbacks() -> list[Any]:
    """One more :class:`~gfi_lightning.GFICallback` for every Trainer, if ``GFI_LIGHTNING=1`` asks for it.

    Returns:
        A callback that steps aside in a Trainer that has one already, or that cannot be explained; or nothing.

    Raises:
        UsageError: the variable is neither on nor off.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in _OFF:
        return []
    if value not in _ON:
        raise UsageError(
            f"The environment variable {VARIABLE}={os.environ[VARIABLE]!r} is neither on nor off: set it to 1, and "
            "every Trainer gets a GFICallback, or to 0."
        )
    try:
        from gfi_lightning.training.added import AddedCallback
    except Exception as error:  # whatever is wrong with this environment's libraries
        warnings.warn(f"{VARIABLE}={value} adds no GFICallback, as it cannot be imported: {brief(error)}", stacklevel=2)
        return []
    return [AddedCallback()]
