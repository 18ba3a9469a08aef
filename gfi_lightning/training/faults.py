"""What goes wrong of ours: one warning each, on the first rank, and the training goes on."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gfi_lightning.errors import Fault
from gfi_lightning.logs import logger
from gfi_lightning.training import internals

Said = list[tuple[str, str | None]]  # warnings and their causes


class Faults:
    """Says what goes wrong, once per cause.

    Args:
        raises: failures end the run instead.
        verbose: what is no fault is said, too.
    """

    def __init__(self, raises: bool, verbose: bool = True) -> None:
        self._raises = raises
        self._verbose = verbose
        self._said: set[str] = set()
        self._unsaid: Said = []

    @contextmanager
    def guarded(self, raise_misuse: bool = False) -> Iterator[None]:
        """What fails within becomes a warning.

        Args:
            raise_misuse: but a UsageError is raised.
        """
        try:
            yield
        except Exception as error:
            fault = Fault.of(error)
            if self._raises or (raise_misuse and fault.misuse):
                if not fault.misuse:  # which says all itself
                    _add_note(error, f"GFICallback could not {fault.activity}. {fault.remedy}".rstrip())
                raise
            self.warn(f"{fault}\nGFICallback(on_error='raise') shows where this comes from.", fault.cause)

    def warn(self, message: str, cause: str | None = None) -> None:
        """Warn, once per cause: of the same fault with other numbers in its message nobody wants to hear again."""
        if not self._is_new(cause or message):
            return
        if internals.is_first_rank():
            warnings.warn(message, stacklevel=3)
        else:
            self._unsaid.append((message, cause))  # the first rank will say it

    def inform(self, message: str) -> None:
        """Say what is no fault, once."""
        if self._verbose and self._is_new(message):
            logger.info(message)

    def take_unsaid(self) -> Said:
        """What another rank has to say for this one."""
        unsaid, self._unsaid = self._unsaid, []
        return unsaid

    def _is_new(self, cause: str) -> bool:
        is_new = cause not in self._said
        self._said.add(cause)
        return is_new


def _add_note(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # where no traceback shows notes
        error.__notes__ = [*getattr(error, "__notes__", ()), note]
        logger.error(note)
