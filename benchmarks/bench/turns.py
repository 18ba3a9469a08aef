"""Works that are timed in turns, so that what else the machine does is shared by all."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Measured = TypeVar("Measured")


def take_turns(works: Mapping[Key, Callable[[], Measured]], rounds: int) -> list[dict[Key, Measured]]:
    """What each work returns, its seconds, by rounds. Every second round goes backwards, which evens out a drift."""
    there, back = list(works), list(reversed(works))
    return [{key: works[key]() for key in (back if number % 2 else there)} for number in range(rounds)]


def ratios(rounds: Sequence[Mapping[Key, float]], key: Key, base: Key) -> list[float]:
    """How long a work took beside the base, in each round."""
    return [seconds[key] / seconds[base] for seconds in rounds]
