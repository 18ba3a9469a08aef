"""Send pictures and curves to the loggers of a Trainer."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from google_crc32c import value as crc32c
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow  # type: ignore[import-untyped]

from gfi_lightning.recording.pictures import Pixels

_COLORS = 3
_one_at_a_time = Lock()


def shows_images(logger: Any) -> bool:
    """Whether a logger is a TensorBoardLogger, of either of Lightning's two packages."""
    # By name: `pytorch_lightning` and `lightning.pytorch` are different class trees, and a DummyLogger, which
    # stands in for every logger in a fast_dev_run, has any attribute that it is asked for.
    return any(base.__name__ == "TensorBoardLogger" for base in type(logger).__mro__)


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as the bytes of a file that browsers show, PNG or GIF, and its size in px."""

    data: bytes
    height: int
    width: int


Pictures = dict[str, EncodedPicture]  # by tag


def encoded(pixels: Pixels) -> EncodedPicture:
    """Compress a picture (height, width, 3), uint8, lightly: else that takes half of a run on small images."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    height, width, _ = pixels.shape
    return EncodedPicture(png.getvalue(), height, width)


def log_pictures(logger: Any, pictures: Pictures, step: int) -> None:
    """Pictures to a TensorBoardLogger, at a step of the x axis."""
    writer = logger.experiment
    with _fast_checksums():
        for tag, picture in pictures.items():
            # Not by add_image, which would compress them anew, and hard, and of an animation take the first frame.
            image = Summary.Image(
                encoded_image_string=picture.data, height=picture.height, width=picture.width, colorspace=_COLORS
            )
            writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
        writer.flush()  # to be looked at now, not when the buffer is full


@contextmanager
def _fast_checksums() -> Iterator[None]:
    """Let TensorBoard have its checksums from a library in C, and then its own function again.

    It computes them byte by byte in Python, a tenth of a second for every megabyte.
    """
    with _one_at_a_time:  # else the last one to leave would put back what the first one had put there
        own = pywrap_tensorflow.crc32c
        pywrap_tensorflow.crc32c = crc32c
        try:
            yield
        finally:
            pywrap_tensorflow.crc32c = own


def log_scalars(logger: Any, scalars: Mapping[str, float], step: int) -> None:
    """Scalars by tag, to any of Lightning's loggers, at a step of the x axis."""
    logger.log_metrics(dict(scalars), step=step)
