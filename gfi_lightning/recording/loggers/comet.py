"""Pictures in Comet."""

import io
from typing import Any

from gfi_lightning.recording.encoding import Pictures


def log_pictures(logger: Any, pictures: Pictures, step: int) -> None:
    """Pictures to a CometLogger, with captions among their metadata."""
    for tag, picture in pictures.items():
        logger.experiment.log_image(
            io.BytesIO(picture.data),
            name=tag,
            image_format=picture.format,
            step=step,
            metadata={"caption": picture.caption} if picture.caption else None,
        )
