"""The pictures that docs/reading.md explains: the same samples where all is well, and where something is not.

Four trainings of the same network on the pictures of digits.py and shortcut.py, each watched by GFICallback. The
pictures are those that TensorBoard shows, read back from its files.

    python examples/reading.py [--epochs 5] [--train-size 6000] [--log-dir reading_logs] [--out docs/pictures]
"""

import argparse
import io
from pathlib import Path

from digits import SmallCNN, split_digits
from PIL import Image
from scattered import collections, fit, new_model, save_numbers, save_picture
from shortcut import PatchedDigits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD
from torch.utils.data import Subset

from gfi_lightning import History

SAMPLES = 8
RIGHT, DECOY, SATURATED, NOT_FINITE = "right", "decoy", "saturated", "not_finite"
RATES = {SATURATED: 1e4, NOT_FINITE: 1e38}  # learning rates, far too high
PICTURES = {  # by name: the run, the sample, and which of its steps
    "untrained": (RIGHT, 2, 0),
    "trained": (RIGHT, 2, -1),
    "pretty": (RIGHT, 6, 0),
    "disagree": (RIGHT, 3, -1),
    "object": (RIGHT, 7, -1),
    "shortcut": (DECOY, 7, -1),
    "frame": (SATURATED, 3, -1),
    "no_evidence": (NOT_FINITE, 3, -1),
}


class Ruined(SmallCNN):
    """The same network with a learning rate that ruins it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def configure_optimizers(self) -> SGD:
        return SGD(self.parameters(), lr=self.rate)


def shown(log_dir: Path, sample: int, step: int) -> Image.Image:
    """A sample's picture in TensorBoard, at the first step (0), at the last (−1), or between."""
    events = EventAccumulator(str(log_dir), size_guidance={"images": 0}).Reload()
    return Image.open(io.BytesIO(events.Images(f"gfi/sample_{sample}")[step].encoded_image_string))


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
    histories = {RIGHT: fit(new_model(), train, val, options.epochs, options.log_dir, RIGHT, **every)}
    train_digits, val_digits = split_digits()
    decoys = [
        PatchedDigits(size, seed, *digits, tells_class=True)
        for size, seed, digits in ((options.train_size, 1, train_digits), (500, 2, val_digits))
    ]
    histories[DECOY] = fit(new_model(), *decoys, 2, options.log_dir, DECOY, **every)
    for name, rate in RATES.items():
        new_model()  # for its seed
        histories[name] = fit(Ruined(rate), Subset(train, range(320)), val, 1, options.log_dir, name, **every)

    report(histories, options.out)
    draw(options.log_dir, options.out)


def report(histories: dict[str, History], out: Path) -> None:
    """Print and keep the curves' first and last values, of each run: the means over the samples, and each sample's."""
    numbers = {}
    for name, history in histories.items():
        print(f"{name}, steps {history.steps}")
        curves = {curve: history.curve(curve) for curve in ("preserved", "removed")}
        for curve, values in {**curves, "p of the prediction": history.predicted_scores}.items():
            print(f"  {curve}: {values[0].mean():.2f} untrained, {values[-1].mean():.2f} trained; each at the end:")
            print("   ", *(f"{value:.2f}" for value in values[-1]))
            for place, step in ((0, history.steps[0]), (-1, history.steps[-1])):
                samples = {f"sample_{number}": value for number, value in enumerate(values[place].tolist())}
                numbers[f"{name}: {curve}, at step {step}"] = {"mean": float(values[place].mean()), **samples}
    save_numbers(numbers, out / "reading.json")


def draw(folder: Path, out: Path) -> None:
    """Keep the pictures that the page shows."""
    for name, (run, sample, step) in PICTURES.items():
        save_picture(shown(log_dir(folder, run), sample, step), out / f"reading_{name}.png")


if __name__ == "__main__":
    main()
