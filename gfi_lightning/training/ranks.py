"""The processes of a distributed training, as far as they must agree with each other."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import distributed

from gfi_lightning.errors import Fault, FaultElsewhere, UsageError, attempt

T = TypeVar("T")


class Ranks:
    """This process among those that train together.

    Whatever one of them does that others wait for, all of them do: every method is called on every rank, in the
    same order, also where one has failed. So a fault on one rank becomes a fault of all, and none waits for it.
    (A model whose own forward waits for the other ranks does so as it would in training.)

    Args:
        rank: of this process.
        count: of processes.
        sharded: no process holds the whole model, and every forward pass takes all of them.
    """

    def __init__(self, rank: int = 0, count: int = 1, sharded: bool = False) -> None:
        self.rank = rank
        self.count = count
        self.sharded = sharded

    def share(self, count: int) -> list[int]:
        """The numbers of the samples that are explained on this rank.

        Each rank has as many, the last ones of all being given out again where they do not divide evenly: the
        same passes are made everywhere, for the sake of models whose forward talks to the other ranks. Where the
        model itself is spread over them, everyone explains everything.
        """
        if self.sharded:
            return list(range(count))
        each = -(-count // self.count)
        return [min(number, count - 1) for number in range(self.rank * each, (self.rank + 1) * each)]

    def keeps(self, number: int) -> bool:
        """Whether what was seen of a sample that was explained here is drawn here, too."""
        return not self.sharded or number % self.count == self.rank

    def agree(self, work: Callable[[], T]) -> T:
        """This rank's result, once it is known that all others have theirs.

        Raises:
            FaultElsewhere: another rank failed (:class:`UsageError` where it did so by misuse).
            Exception: this one did.
        """
        if self.count == 1:
            return work()
        try:
            result, failure = work(), None
        except Exception as error:
            result, failure = None, error
        faults = self.everyones(None if failure is None else Fault.of(failure))
        if failure is not None:
            raise failure
        for rank, fault in enumerate(faults):
            if fault is not None:
                raise UsageError(fault.error) if fault.misuse else FaultElsewhere(fault, rank)
        return cast(T, result)

    def from_first(self, work: Callable[[], T]) -> T:
        """The first rank's result, on all; it alone does the work.

        Raises:
            FaultElsewhere: it failed there, see :meth:`agree`.
        """
        if self.count == 1:
            return work()
        # Pickled within the agreement: what cannot be sent must not leave the others waiting for it.
        sent = [self.agree(lambda: _pickled(work()) if self.rank == 0 else b"")]
        distributed.broadcast_object_list(sent, src=0)
        return self.agree(lambda: cast(T, pickle.loads(sent[0])))

    def everyones(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value on the first rank; None elsewhere."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.rank == 0 else None
        distributed.gather_object(value, values, dst=0)
        return values


def _pickled(value: Any) -> bytes:
    advice = "Let the validation loader's collate function return what can be pickled, or give samples=."
    with attempt("send its samples to the other ranks", advice):
        return pickle.dumps(value)
