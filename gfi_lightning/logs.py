"""Our log lines."""

import logging

logger = logging.getLogger("gfi_lightning")


class _UnlessConfigured(logging.StreamHandler):  # type: ignore[type-arg]  # no brackets before Python 3.11
    """Shows our lines in a program that configured no logging, and stays silent in one that did."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not logging.getLogger().handlers


if not logger.handlers:
    logger.setLevel(logging.INFO)
    logger.addHandler(_UnlessConfigured())
