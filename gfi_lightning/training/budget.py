"""How much of the training's time explaining may take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_RUNS_WITHOUT_LIMIT = 3  # the first one warms up, and what a run costs is known from the next two
_DEFAULT_LIMIT = 0.05
_DEFAULT_FREE = 60.0  # seconds


class Budget:
    """Keeps the time spent on explaining below a share of the wall time since it was made.

    A scheduled run is skipped where it, and one more at the end of the training, would break the limit. What a run
    costs is taken from the last two, the dearer one, so that it follows a model that becomes slower or faster. The
    training's own pace needs no estimate: only of time that has passed a share is spent.

    Args:
        max_overhead: the share, in (0, 1]; 1 is no limit. None: 0.05, and a minute on top, so that short trainings are
            seen in full and long ones are not held up.

    Attributes:
        limit: the share.
        free: seconds that may be spent on top.
    """

    def __init__(self, max_overhead: float | None) -> None:
        self.limit = _DEFAULT_LIMIT if max_overhead is None else max_overhead
        self.free = _DEFAULT_FREE if max_overhead is None else 0.0
        self._began = time.monotonic()
        self._spent = 0.0  # seconds
        self._spending_since: float | None = None
        self._costs: list[float] = []  # of the last two runs, in seconds
        self._started = self._explained = self._skipped = 0
        self._last_skipped: int | None = None  # its step

    @property
    def overhead(self) -> float:
        """The share of the time so far that was spent on explaining, in [0, 1]."""
        now = time.monotonic()
        spent = self._spent + (0.0 if self._spending_since is None else now - self._spending_since)
        return spent / (now - self._began) if now > self._began else 0.0

    @property
    def last_cost(self) -> float | None:
        """What the last run took that went well, in seconds; None: there was none."""
        return self._costs[-1] if self._costs else None

    def allows_another(self) -> bool:
        """Whether another run keeps within the limit, and leaves room for the last one."""
        if self.limit == 1 or self._started < _RUNS_WITHOUT_LIMIT:
            return True
        ahead = 2 * max(self._costs, default=0.0)
        elapsed = time.monotonic() - self._began
        return self._spent + ahead <= self.free + self.limit * (elapsed + ahead)

    def skip(self, step: int) -> None:
        """The run that was scheduled at this step is left out."""
        if step != self._last_skipped:  # where the end of an epoch falls on a step that was scheduled as well
            self._skipped += 1
            self._last_skipped = step

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done within belongs to explaining."""
        wait_for_gpu()
        self._spending_since = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - self._spending_since
            self._spending_since = None

    @contextmanager
    def run(self, step: int) -> Iterator[None]:
        """What is done within is the run at this step."""
        before = self._spent
        if step == self._last_skipped:  # the end of the training, where nothing is skipped
            self._skipped -= 1
            self._last_skipped = None
        self._started += 1
        with self.spending():
            yield
        # Not after a failure, which tells nothing about what a run costs.
        self._costs = [*self._costs[-1:], self._spent - before]
        self._explained += 1

    def __str__(self) -> str:
        scheduled = self._started + self._skipped
        return f"explained {self._explained} of {scheduled} scheduled runs, {self.overhead:.1%} of the time"


def wait_for_gpu() -> None:
    """The training's own work that is still queued there must not count as ours."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
