"""Pictures as the bytes of files, in which they travel between ranks and go to loggers."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Semaphore

import torch
from PIL import Image

from gfi_lightning.recording.pictures import Pixels


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as the bytes of a file that browsers show.

    Attributes:
        data: of the file.
        height: px.
        width: px.
        format: "png", or "gif" where it moves.
        caption: what it shows, in one line.
        of_all_runs: it shows all runs so far, and takes the place of the one that was drawn at the run before.
    """

    data: bytes
    height: int
    width: int
    format: str = "png"
    caption: str = ""
    of_all_runs: bool = False

    def image(self) -> Image.Image:
        """The picture itself; of an animation the first frame."""
        return Image.open(io.BytesIO(self.data))


Pictures = dict[str, EncodedPicture]  # by tag


def encoded(pixels: Pixels, caption: str = "", of_all_runs: bool = False) -> EncodedPicture:
    """Compress a picture (height, width, 3), uint8, lightly: else that takes half of a run on small images."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    height, width, _ = pixels.shape
    return EncodedPicture(png.getvalue(), height, width, "png", caption, of_all_runs)


@contextmanager
def encoding(pictures: Pictures) -> Iterator[Callable[..., None]]:
    """Compress pictures while others are drawn, as many at once as PyTorch has threads: it takes longer than to draw.

    Where no thread can be started, as under a limit on their number, each is compressed when it is handed over.

    Args:
        pictures: what has been handed over is added to them at the end, in that order, even where drawing the next one
            has failed. What could not be compressed is left out, and the first such failure is raised.

    Yields:
        Takes a tag, and what :func:`encoded` takes.
    """
    threads = torch.get_num_threads()
    futures: dict[str, Future[EncodedPicture]] = {}
    room = Semaphore(2 * threads)  # no more wait, as they are large before they are compressed

    def encode(tag: str, pixels: Pixels, caption: str = "", of_all_runs: bool = False) -> None:
        room.acquire()
        futures[tag] = _submitted(pool, partial(encoded, pixels, caption, of_all_runs))
        futures[tag].add_done_callback(lambda _: room.release())

    with ThreadPoolExecutor(threads, "gfi") as pool:
        try:
            yield encode
        finally:
            done = {tag: future for tag, future in futures.items() if future.exception() is None}
            pictures.update((tag, future.result()) for tag, future in done.items())
    for future in futures.values():
        future.result()  # which raises what has failed


def _submitted(pool: ThreadPoolExecutor, work: Callable[[], EncodedPicture]) -> Future[EncodedPicture]:
    try:
        return pool.submit(work)
    except RuntimeError:  # no thread can be started
        future: Future[EncodedPicture] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future
