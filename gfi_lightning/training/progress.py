"""A progress bar for explanations that take their time, beside Lightning's own and in its style."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import lightning as L
from typing_extensions import Self, override

from gfi_lightning.errors import attempt
from gfi_lightning.training.faults import Faults

_PATIENCE = 2.0  # seconds, before which nobody wonders
_INTERVAL = 0.1  # seconds between two changes of what is shown


class Bar(Protocol):
    """What is shown."""

    def show(self, done: int, total: int) -> None:
        """So much is done."""

    def close(self) -> None:
        """Nothing of it is left."""


class Progress:
    """Is told of forward passes, within a ``with`` statement, and shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def expect(self, passes: int) -> None:
        """So many more will be made."""

    def begin_pass(self) -> None:
        """The next one begins, and those before are done."""


QUIET = Progress()


class SlowProgress(Progress):
    """Shows a bar once an explanation has taken two seconds, until the ``with`` statement is left.

    Args:
        open_bar: opens it, given what is done and the total.
        faults: say what fails; what is explained never notices.
    """

    def __init__(self, open_bar: Callable[[int, int], Bar], faults: Faults) -> None:
        self._open_bar = open_bar
        self._faults = faults
        self._began = self._shown = time.monotonic()
        self._begun = self._total = 0
        self._bar: Bar | None = None
        self._failed = False

    @override
    def expect(self, passes: int) -> None:
        self._total += passes

    @override
    def begin_pass(self) -> None:
        self._begun += 1
        now = time.monotonic()
        if not self._failed and now - self._began >= _PATIENCE and now - self._shown >= _INTERVAL:
            self._shown = now
            self._guarded(self._show)

    @override
    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._guarded(self._bar.close)

    def _show(self) -> None:
        done = self._begun - 1
        total = max(self._total, self._begun)
        if self._bar is None:
            self._bar = self._open_bar(done, total)
        self._bar.show(done, total)

    def _guarded(self, work: Callable[[], None]) -> None:
        self._failed = True
        with self._faults.guarded(), attempt("show a progress bar", "GFICallback(verbose=False) does without."):
            work()
            self._failed = False


def bar_opener(trainer: L.Trainer, title: str) -> Callable[[int, int], Bar] | None:
    """Opens a bar in the style of the Trainer's own; None where that has none, or one of another kind."""
    own: Any = trainer.progress_bar_callback
    if own is None or not getattr(own, "is_enabled", False):
        return None
    # By name, because there are two packages of Lightning.
    bases = {base.__name__: base for base in type(own).__mro__}
    if "RichProgressBar" in bases:
        return lambda done, total: _RichBar(own, trainer, title, done, total)
    if "TQDMProgressBar" in bases:
        tqdm = sys.modules[bases["TQDMProgressBar"].__module__].Tqdm
        return lambda done, total: _TqdmBar(own, tqdm, title, done, total)
    return None


class _TqdmBar:
    """Below the bars that are there."""

    def __init__(self, own: Any, tqdm: Any, title: str, done: int, total: int) -> None:
        self._bar = tqdm(
            desc=title,
            total=total,
            initial=done,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format=getattr(own, "BAR_FORMAT", None),
        )

    def show(self, done: int, total: int) -> None:
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class _RichBar:
    """One more line of Lightning's display, of which there can be only one, or one of its own where that is not up."""

    def __init__(self, own: Any, trainer: L.Trainer, title: str, done: int, total: int) -> None:
        from rich.progress import Progress as RichProgress

        self._stack = ExitStack()
        self._display = own.progress
        if self._display is None or not self._display.live.is_started:
            self._display = RichProgress(*own.configure_columns(trainer), transient=True)
            self._stack.enter_context(self._display)
        self._task = self._display.add_task(title, total=total, completed=done)
        # Hidden and not removed, because Lightning takes its own tasks by their place in the list of all.
        self._stack.callback(self._refresh, visible=False)

    def show(self, done: int, total: int) -> None:
        self._refresh(completed=done, total=total)

    def close(self) -> None:
        self._stack.close()

    def _refresh(self, **changes: Any) -> None:
        self._display.update(self._task, **changes)
        self._display.refresh()
