"""Pictures in Weights & Biases."""

import tempfile
from pathlib import Path
from typing import Any

from gfi_lightning.recording.encoding import EncodedPicture, Pictures


def log_pictures(logger: Any, pictures: Pictures, step: int) -> None:
    """Pictures to a WandbLogger, with captions, all in one row of its history."""
    with tempfile.TemporaryDirectory() as folder:  # from which they are copied at once
        media = {
            tag: [_media(picture, Path(folder, f"{number}.{picture.format}"))]
            for number, (tag, picture) in enumerate(pictures.items())
        }
        logger.log_metrics(media, step=step)


def _media(picture: EncodedPicture, path: Path) -> Any:
    import wandb

    # From a file, which is taken as it is: else pictures would be compressed anew, and of animations one frame shown.
    path.write_bytes(picture.data)
    kind = wandb.Video if picture.format == "gif" else wandb.Image
    return kind(str(path), caption=picture.caption or None)
