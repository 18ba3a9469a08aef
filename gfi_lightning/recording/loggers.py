"""Send pictures and curves to the loggers of a Trainer."""

from collections.abc import Mapping
from typing import Any

from gfi_lightning.recording.pictures import Pixels


def shows_images(logger: Any) -> bool:
    """Whether a logger is a TensorBoardLogger, of either of Lightning's two packages."""
    # By name: `pytorch_lightning` and `lightning.pytorch` are different class trees, and a DummyLogger, which
    # stands in for every logger in a fast_dev_run, has any attribute that it is asked for.
    return any(base.__name__ == "TensorBoardLogger" for base in type(logger).__mro__)


def log_pictures(logger: Any, pictures: Mapping[str, Pixels], step: int) -> None:
    """Pictures (height, width, 3), uint8, by tag, to a TensorBoardLogger, at a step of the x axis."""
    for tag, pixels in pictures.items():
        logger.experiment.add_image(tag, pixels, global_step=step, dataformats="HWC")
    logger.experiment.flush()  # to be looked at now, not when the buffer is full


def log_scalars(logger: Any, scalars: Mapping[str, float], step: int) -> None:
    """Scalars by tag, to any of Lightning's loggers, at a step of the x axis."""
    logger.log_metrics(dict(scalars), step=step)
