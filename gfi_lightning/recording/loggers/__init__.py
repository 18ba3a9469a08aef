"""Send pictures and curves to the loggers of a Trainer, to each by its own idiom.

A logger of one's own, or one that is not known here, takes pictures as soon as its class has a method for them, see
:class:`PictureLogger`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from gfi_lightning.recording.encoding import EncodedPicture, Pictures

__all__ = [
    "EncodedPicture",
    "Outlet",
    "PictureLogger",
    "Pictures",
    "is_dummy",
    "is_tensorboard",
    "log_scalars",
    "picture_outlets",
    "unknown_loggers",
]


Send = Callable[[Pictures, int], None]  # pictures, and the step of the x axis


class Outlet(NamedTuple):
    """A place where pictures are shown: what it is called in messages, and how to send them there, with their step."""

    name: str
    send: Send


# The modules beside this one that know a logger, by its class. By name, because `pytorch_lightning` and
# `lightning.pytorch` are different class trees, and because nobody has all of these libraries.
_IDIOMS = {
    "TensorBoardLogger": "tensorboard",
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet",
}
_FILES_BESIDE = "CSVLogger"  # which has no place for pictures but its folder


class PictureLogger(Protocol):
    """What a logger needs to be shown pictures: this one method in its class.

    Example::

        class MyLogger(L.pytorch.loggers.CSVLogger):
            def log_pictures(self, pictures, step):
                for tag, picture in pictures.items():
                    path = Path(self.log_dir, f"{tag.replace('/', '_')}_{step}.{picture.format}")
                    path.write_bytes(picture.data)
    """

    def log_pictures(self, pictures: Pictures, step: int) -> None:
        """Take pictures, on the first rank.

        Args:
            pictures: by tag, as PNG or GIF; see :class:`EncodedPicture`.
            step: of the x axis, that of the logged metrics.
        """


def picture_outlets(loggers: Sequence[Any], prefix: str, folder: Path | None, run_id: str = "") -> list[Outlet]:
    """Where a training's pictures go.

    To every logger that shows pictures; to files in the folder of a CSVLogger; and where nothing of that is there, to
    files in the training's own folder.

    Args:
        loggers: of the Trainer.
        prefix: of all tags, and the folder of files below each log directory.
        folder: the log directory; None: no files are to be written.
        run_id: of the training; trainings that share a log directory do not mix their files.
    """
    outlets: list[Outlet] = []
    log_dirs: list[Path] = []
    for logger in loggers:
        if (send := _sender(logger)) is not None:
            outlets.append(Outlet(type(logger).__name__, send))
        elif _FILES_BESIDE in _class_names(logger):
            log_dirs += [log_dir] if (log_dir := _log_dir(logger) or folder) is not None else []
    if not outlets and not log_dirs and folder is not None:
        log_dirs = [folder]
    return outlets + [_files(log_dir, prefix, run_id) for log_dir in dict.fromkeys(log_dirs)]


def _sender(logger: Any) -> Send | None:
    """How it is sent pictures: by its own method, or by its idiom; None where it is shown none."""
    if hasattr(type(logger), "log_pictures"):
        return cast(PictureLogger, logger).log_pictures
    if (known := _known(logger)) is None:
        return None
    return partial(import_module(f"{__name__}.{_IDIOMS[known]}").log_pictures, logger)


def _log_dir(logger: Any) -> Path | None:
    with suppress(Exception):  # of a subclass that has none
        return Path(logger.log_dir)
    return None


def _files(log_dir: Path, prefix: str, run_id: str) -> Outlet:
    files = import_module(f"{__name__}.files")
    folder = files.folder_of_pictures(log_dir, prefix)
    return Outlet(f"files in {folder}", partial(files.log_pictures, folder / run_id, prefix))


def unknown_loggers(loggers: Sequence[Any]) -> list[str]:
    """The classes of those that are shown no pictures, because it is not known how."""
    others = [one for one in loggers if not is_dummy(one) and _FILES_BESIDE not in _class_names(one)]
    return [type(one).__name__ for one in others if _sender(one) is None]


def is_tensorboard(logger: Any) -> bool:
    """Whether it is a TensorBoardLogger, of either of Lightning's two packages."""
    return _known(logger) == "TensorBoardLogger"


def is_dummy(logger: Any) -> bool:
    """Whether it stands in for a logger where nothing is to be logged, as in a ``fast_dev_run``."""
    return "DummyLogger" in _class_names(logger)  # of which each attribute is there that it is asked for


def log_scalars(logger: Any, scalars: Mapping[str, float], step: int) -> None:
    """Scalars by tag, to any of Lightning's loggers, at a step of the x axis."""
    logger.log_metrics(dict(scalars), step=step)


def _known(logger: Any) -> str | None:
    return next((name for name in _class_names(logger) if name in _IDIOMS), None)


def _class_names(logger: Any) -> list[str]:
    return [base.__name__ for base in type(logger).__mro__]
