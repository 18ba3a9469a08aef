"""What can go wrong, and how it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from textwrap import shorten
from typing import Any

_LONGEST = 300  # characters of an exception within a message


class UsageError(ValueError):
    """Something that the user gave cannot work; the message names the value and the remedy."""


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, value: Any, smallest: int = 1) -> None:
    """Raise UsageError for what is no whole number, or a smaller one."""
    if not is_whole(value) or value < smallest:
        raise UsageError(f"{name}={value!r} must be a whole number, at least {smallest}.")


@contextmanager
def attempt(activity: str, remedy: str) -> Iterator[None]:
    """Whatever fails in here failed in this attempt; of nested ones the innermost is told.

    Args:
        activity: what is being done, as in "could not …".
        remedy: what the user can do about it, a sentence.
    """
    try:
        yield
    except Exception as error:
        if not hasattr(error, "_gfi_attempt"):
            tell(error, activity, remedy)
        raise


def tell(error: Exception, activity: str, remedy: str) -> None:
    """Attach to an exception what was attempted, see :func:`attempt`."""
    error._gfi_attempt = (activity, remedy)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Fault:
    """What is to be told of an exception, in plain text, which another process can be sent.

    Attributes:
        error: its type and message.
        activity: what was being done.
        remedy: what the user can do about it.
        cause: the kind of error and the line that raised it: of the same cause nobody wants to hear twice.
        misuse: whether it was a :class:`UsageError`.
    """

    error: str
    activity: str
    remedy: str
    cause: str
    misuse: bool

    @classmethod
    def of(cls, error: Exception) -> "Fault":
        """Tell of an exception."""
        if isinstance(error, FaultElsewhere):
            return error.fault
        activity, remedy = getattr(error, "_gfi_attempt", ("explain", ""))
        text = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        return cls(text, activity, remedy, _origin(error), isinstance(error, UsageError))

    def __str__(self) -> str:
        return f"GFICallback could not {self.activity}, and the run goes on: {self.error}\n{self.remedy}".rstrip()


class FaultElsewhere(RuntimeError):  # noqa: N818  # what failed, failed in another process
    """Another process failed, and this one goes no further either."""

    def __init__(self, fault: Fault, rank: int) -> None:
        super().__init__(f"rank {rank} could not {fault.activity}: {fault.error}")
        self.fault = fault


def raised_by_us(error: Exception) -> bool:
    """Whether it was a line of this package that raised it, and not one that this package called."""
    return Path(_place(error).rpartition(":")[0]).is_relative_to(Path(__file__).parent)


def _origin(error: Exception) -> str:
    return f"{type(error).__name__} at {_place(error)}"


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def brief(error: BaseException) -> str:
    """An exception in a line that can be read."""
    return shorten(f"{type(error).__name__}: {error}".rstrip(": "), _LONGEST, placeholder=" …")
