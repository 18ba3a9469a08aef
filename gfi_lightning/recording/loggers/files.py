"""Pictures as files, where no logger shows them."""

import os
from pathlib import Path

from gfi_lightning.recording.encoding import EncodedPicture, Pictures

_FOLDER = "pictures"


def folder_of_pictures(log_dir: Path, prefix: str) -> Path:
    """Where the pictures of a training lie, below its log directory."""
    return log_dir / prefix / _FOLDER


def log_pictures(folder: Path, prefix: str, pictures: Pictures, step: int) -> None:
    """Write pictures to a folder, which is made where it is missing.

    Each run's go to ``<name>/step_00000012.png``; what shows all runs so far, to ``<name>.png``, where it takes the
    place of the one before.

    Args:
        folder: of the pictures.
        prefix: of the tags, which is left out of their names.
        pictures: by tag.
        step: of the x axis.
    """
    for tag, picture in pictures.items():
        _write(folder / _name(tag.removeprefix(f"{prefix}/"), picture, step), picture.data)


def _name(tag: str, picture: EncodedPicture, step: int) -> str:
    # With leading zeros, so that a file browser shows them in their order.
    return f"{tag}.{picture.format}" if picture.of_all_runs else f"{tag}/step_{step:08d}.{picture.format}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")  # nobody sees half a picture
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
