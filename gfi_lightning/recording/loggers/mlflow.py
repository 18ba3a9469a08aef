"""Pictures in MLflow."""

import re
import tempfile
from pathlib import Path
from typing import Any

from gfi_lightning.recording.encoding import Pictures


def log_pictures(logger: Any, pictures: Pictures, step: int) -> None:
    """Pictures to an MLFlowLogger: as images that its run page shows by their step, and animations as artifacts."""
    client, run = logger.experiment, logger.run_id
    for tag, picture in pictures.items():
        if picture.format == "png":
            client.log_image(run, picture.image(), key=_key(tag), step=step)
        else:
            with tempfile.TemporaryDirectory() as folder:
                name = tag.rpartition("/")[2]
                path = Path(folder, f"{name}.{picture.format}")
                path.write_bytes(picture.data)
                client.log_artifact(run, str(path), tag.rpartition("/")[0])


def _key(tag: str) -> str:
    return re.sub(r"[^\w\-./ ]", "_", tag, flags=re.ASCII)  # all else MLflow refuses
