"""Our log lines."""

import logging
import sys

logger = logging.getLogger("gfi_lightning")


class _UnlessConfigured(logging.StreamHandler):  # type: ignore[type-arg]  # no brackets before Python 3.11
    """Shows our lines in a program that configured no logging, and stays silent in one that did."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not logging.getLogger().handlers

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # the one of now: progress bars put another one there, which writes above them
        super().emit(record)


if not logger.handlers:
    logger.setLevel(logging.INFO)
    logger.addHandler(_UnlessConfigured())
