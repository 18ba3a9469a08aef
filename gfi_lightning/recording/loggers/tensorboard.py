"""Pictures in TensorBoard."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from google_crc32c import value as crc32c
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow  # type: ignore[import-untyped]

from gfi_lightning.recording.encoding import Pictures

_COLORS = 3
_one_at_a_time = Lock()


def log_pictures(logger: Any, pictures: Pictures, step: int) -> None:
    """Pictures to a TensorBoardLogger."""
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
