"""What a long script says while it measures."""

import sys


def say(words: str) -> None:
    """On the stream of errors, as the one of output is for tables; looked up each time, so that it can be captured."""
    print(words, file=sys.stderr, flush=True)
