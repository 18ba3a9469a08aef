"""The pictures that docs/reading.md explains: the same samples where all is well, and where something is not.

Four short trainings of the same network on the pictures of digits.py and shortcut.py, each watched by GFICallback. The
pictures are those that TensorBoard shows, read back from its files.

    python examples/reading.py [--epochs 5] [--train-size 6000] [--log-dir reading_logs] [--out docs/pictures]
"""

import argparse
import io
from pathlib import Path

from digits import SmallCNN, split_digits
from PIL import Image
from scattered import collections, fit, new_model, save_picture
from shortcut import PatchedDigits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD
from torch.utils.data import Subset

SAMPLES = 8
FAR_TOO_HIGH = 1e4  # a learning rate


class Diverging(SmallCNN):
    """The same network with a learning rate that ruins it."""

    def configure_optimizers(self) -> SGD:
        return SGD(self.parameters(), lr=FAR_TOO_HIGH)


def shown(log_dir: Path, sample: int) -> list[Image.Image]:
    """A sample's pictures in TensorBoard, from the first step to the last."""
    events = EventAccumulator(str(log_dir), size_guidance={"images": 0}).Reload()
    pictures = [Image.open(io.BytesIO(one.encoded_image_string)) for one in events.Images(f"gfi/sample_{sample}")]
    return [picture.convert("RGB") for picture in pictures]


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures on one paper."""
    paper = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    paper.paste(left, (0, 0))
    paper.paste(right, (left.width, 0))
    return paper


def log_dir(folder: Path, name: str) -> Path:
    """Of the newest version."""
    return max((folder / name).glob("version_*"), key=lambda version: version.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=6000)
    parser.add_argument("--log-dir", type=Path, default=Path("reading_logs"))
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()

    train, val = collections(options.train_size)
    every = {"num_samples": SAMPLES}
    histories = {"right": fit(new_model(), train, val, options.epochs, options.log_dir, "right", **every)}
    train_digits, val_digits = split_digits()
    decoys = [
        PatchedDigits(size, seed, *digits, tells_class=True)
        for size, seed, digits in ((options.train_size, 1, train_digits), (500, 2, val_digits))
    ]
    histories["decoy"] = fit(new_model(), *decoys, 2, options.log_dir, "decoy", **every)
    new_model()  # seeds
    histories["ruined"] = fit(Diverging(), Subset(train, range(320)), val, 1, options.log_dir, "ruined", **every)

    for name, history in histories.items():
        print(name, "steps", history.steps)
        for curve in ("preserved", "removed"):
            values = history.curve(curve)
            print(f"  {curve}: mean {values[0].mean():.2f} untrained, {values[-1].mean():.2f} trained;", end=" ")
            print("samples at the end:", " ".join(f"{value:.2f}" for value in values[-1]))
        for sample in range(SAMPLES):
            pictures = shown(log_dir(options.log_dir, name), sample)
            save_picture(pictures[-1], options.out / "all" / f"{name}_{sample}.png")
            save_picture(beside(pictures[0], pictures[-1]), options.out / "all" / f"{name}_{sample}_both.png")


if __name__ == "__main__":
    main()
