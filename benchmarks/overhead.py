"""What the line callbacks=[GFICallback()] costs a training, and what max_overhead= makes of it.

    python benchmarks/overhead.py [--settings cifar imagenet] [--epochs 6] [--steps 4] [--json FILE]
    python benchmarks/overhead.py --real [--rounds 3] [--epochs 40] [--steps 10] [--json FILE]

The first measures a real training on a slice of random data, and works out what it would be with epochs of full size.
The second asks, in a small training that is run as a whole, whether the callback costs what it says that it does.
"""

import argparse
import itertools
import json
import logging
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18, resnet50

from gfi_lightning import GFICallback
from gfi_lightning.logs import logger
from gfi_lightning.training import budget
from gfi_lightning.training.budget import Budget, wait_for_gpu

SIZES = (1, 10, 100)  # epochs of the full size, of a tenth and of a hundredth
LENGTHS = (10, 30, 100)  # of trainings, in epochs
LIMITS = (1, 0.01, 0.02, 0.05)
REAL_LIMIT = 0.05
CAPTION = """\
Measured, in one training of each setting: the first table. It tells how many training images take as long, by the steps
of the same epoch for a run, and by those of all epochs but the first for the rest; medians. The other tables follow
from it. In the second an epoch takes as long as its training and its validation images, and a run's share is
run / (epoch + run). The third drives the callback's own budget by a clock that is fed these times.

The network has learned nothing, so that nearly all of the 8 predictions are wrong, and two classes of each image are
explained: the dearest case. Images lie in memory: in a training that waits for its data the shares are smaller. What is
drawn once at the end, which takes longer after more runs, is in the first table only.
"""
REAL_CAPTION = """\
All shares are of the wall time of a training with the callback. "It says" is its own log line. "Its hooks" is the time
within them. The last of them explains where the last epoch's run was skipped, and draws what is drawn once. "On top of
none" is what the training took longer than the mean of the two without the callback before and after it. "Two of none"
is how far apart these were, as a ratio: what is left of the difference beside it is the machine's."""


@dataclass(frozen=True)
class Setting:
    """A training.

    Attributes:
        name: in words.
        network: makes it.
        size: of the images, in px.
        classes: how many there are.
        training: images in an epoch.
        validation: likewise.
        batch: images in a step.
    """

    name: str
    network: Callable[[], nn.Module]
    size: int
    classes: int
    training: int
    validation: int
    batch: int


def cifar_network() -> nn.Module:
    """ResNet-18 as it is usual for small images."""
    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def small_network() -> nn.Module:
    """Of which a CPU trains many epochs in a minute."""
    channels = (3, 32, 64, 64)
    blocks = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2))
        for before, after in itertools.pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


SETTINGS = {
    "cifar": Setting("ResNet-18, 32 px", cifar_network, 32, 10, 50_000, 10_000, 128),
    # On a CPU, 64 images would only make the steps longer.
    "imagenet": Setting(
        "ResNet-50, 224 px", resnet50, 224, 1000, 1_281_167, 50_000, 64 if torch.cuda.is_available() else 8
    ),
}
SMALL = Setting("3 convolutions, 32 px", small_network, 32, 10, 1280, 1280, 128)


@dataclass(frozen=True)
class Costs:
    """How many training images take as long.

    Attributes:
        validation: as one validation image.
        first: as the run of the untrained model, with reading the samples and measuring the noise floor.
        runs: as each later run.
        end: as what is drawn once at the end of the training.
    """

    validation: float
    first: float
    runs: Sequence[float]
    end: float

    @property
    def run(self) -> float:
        """A later run."""
        return statistics.median(self.runs)

    def epoch(self, setting: Setting, parts: int) -> float:
        """One of so many parts of an epoch of full size."""
        return (setting.training + self.validation * setting.validation) / parts


class Classifier(L.LightningModule):
    """A network that learns classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


def now() -> float:
    """The time in seconds, once all that was asked for is done."""
    wait_for_gpu()
    return time.perf_counter()


class Stopwatch(L.Callback):
    """Writes down what each step takes, with loading its batch; the first of the callbacks, to stop before others."""

    def __init__(self) -> None:
        self.training: list[list[float]] = []  # by epoch
        self.validation: list[list[float]] = []
        self._began = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        self._begin(self.training)

    def on_train_batch_end(self, *_: Any) -> None:
        self._end_of_lap(self.training)

    def on_validation_epoch_start(self, *_: Any) -> None:
        self._begin(self.validation)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._end_of_lap(self.validation)

    def _begin(self, epochs: list[list[float]]) -> None:
        epochs.append([])
        self._began = now()

    def _end_of_lap(self, epochs: list[list[float]]) -> None:
        ended = now()
        epochs[-1].append(ended - self._began)
        self._began = ended


class Timed(GFICallback):
    """Writes down what its hooks take: the first run, the one after each epoch, and what comes at the end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first: list[float] = []
        self.runs: list[float] = []
        self.end: list[float] = []

    def on_train_start(self, *args: Any) -> None:
        with timed(self.first):
            super().on_train_start(*args)

    def on_train_epoch_end(self, *args: Any) -> None:
        with timed(self.runs):
            super().on_train_epoch_end(*args)

    def on_train_end(self, *args: Any) -> None:
        with timed(self.end):
            super().on_train_end(*args)


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Write down what is done within."""
    began = now()
    yield
    seconds.append(now() - began)


def fit(setting: Setting, epochs: int, steps: int, callbacks: list[L.Callback]) -> float:
    """The seconds that a real training takes, with epochs of so many steps, and of as many validation steps."""
    L.seed_everything(0, verbose=False)
    count = steps * setting.batch
    data = TensorDataset(torch.randn(count, 3, setting.size, setting.size), torch.arange(count) % setting.classes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            devices=1,
            max_epochs=epochs,
            num_sanity_val_steps=0,
            log_every_n_steps=steps,
            logger=TensorBoardLogger(folder),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        began = now()
        trainer.fit(
            Classifier(setting.network()),
            DataLoader(data, setting.batch, shuffle=True),
            DataLoader(data, setting.batch),
        )
        return now() - began


def measure(setting: Setting, epochs: int, steps: int) -> Costs:
    """What the callback takes by its defaults, but for their limit, beside the steps of the same training."""
    stopwatch, callback = Stopwatch(), Timed(max_overhead=1)  # in so short a training the default's limit skips runs
    fit(setting, epochs, steps, [stopwatch, callback])
    return costs_of(stopwatch, callback, setting.batch)


def costs_of(stopwatch: Stopwatch, callback: Timed, batch: int) -> Costs:
    """What was measured, in training images of that time, as others may have made the machine slower for a while."""
    images, validation_images = (
        [statistics.median(laps) / batch for laps in epochs] for epochs in (stopwatch.training, stopwatch.validation)
    )
    image = statistics.median(images[1:])  # in the first epoch kernels are found
    return Costs(
        statistics.median(validation_images[1:]) / image,
        callback.first[0] / image,
        [run / of_epoch for run, of_epoch in zip(callback.runs, images, strict=True)],
        callback.end[0] / image,
    )


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass(frozen=True)
class Outcome:
    """What a limit makes of a training.

    Attributes:
        limit: 1: there is none.
        explained: how many runs took place.
        scheduled: of how many.
        overhead: the share of the time that they took.
    """

    limit: float
    explained: int
    scheduled: int
    overhead: float

    def __str__(self) -> str:
        return f"{self.explained} of {self.scheduled}, {self.overhead:.2%}"


def simulate(limit: float, epochs: int, epoch: float, first: float, run: float) -> Outcome:
    """What the callback's budget decides in a training of so many epochs, with a run scheduled after each.

    Args:
        limit: of the budget.
        epochs: of the training.
        epoch: what one takes without a run.
        first: what the run of the untrained model takes.
        run: what a later one takes.
    """
    clock, explained = Clock(), 0
    with patch.object(budget, "time", clock):
        spent = Budget(limit)
        for number in range(epochs + 1):
            clock.now += epoch if number else 0.0
            if number == epochs or spent.allows_another():  # the last one always takes place
                with spent.run(number):
                    clock.now += run if number else first
                explained += 1
            else:
                spent.skip(number)
        return Outcome(limit, explained, epochs + 1, spent.overhead)


def outcomes(setting: Setting, costs: Costs) -> list[dict[str, Any]]:
    """For epochs of each size and trainings of each length, what each limit makes of them."""
    rows = []
    for parts, epochs in itertools.product(SIZES, LENGTHS):
        epoch = costs.epoch(setting, parts)
        of_limits = [simulate(limit, epochs, epoch, costs.first, costs.run) for limit in LIMITS]
        rows.append({"parts": parts, "epochs": epochs, "outcomes": of_limits})
    return rows


def size_in_words(parts: int) -> str:
    return "full size" if parts == 1 else f"1/{parts}"


def tables(measured: list[tuple[Setting, Costs]]) -> str:
    """What was measured, and what follows from it."""
    lines = ["| setting | batch | a validation image | first run | later runs | shortest – longest | at the end |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for setting, costs in measured:
        spread = f"{min(costs.runs):.0f} – {max(costs.runs):.0f}"
        figures = f"{costs.validation:.2f} | {costs.first:.0f} | {costs.run:.0f} | {spread} | {costs.end:.0f}"
        lines.append(f"| {setting.name} | {setting.batch} | {figures} |")
    lines += [
        "",
        "| setting | epochs of | an epoch takes as long as | a run takes of an epoch's time |",
        "|---|---|---|---|",
    ]
    for setting, costs in measured:
        for parts in SIZES:
            epoch = costs.epoch(setting, parts)
            share = costs.run / (epoch + costs.run)
            lines.append(f"| {setting.name} | {size_in_words(parts)} | {epoch:.0f} training images | {share:.2%} |")
    heads = ["no limit" if limit == 1 else f"limit {limit:.0%}" for limit in LIMITS]
    lines += ["", f"| setting | epochs of | epochs | {' | '.join(heads)} |", "|---" * (3 + len(heads)) + "|"]
    for setting, costs in measured:
        for row in outcomes(setting, costs):
            cells = " | ".join(map(str, row["outcomes"]))
            lines.append(f"| {setting.name} | {size_in_words(row['parts'])} | {row['epochs']} | {cells} |")
    return "\n".join(lines)


def report(measured: list[tuple[Setting, Costs]]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [
        {
            "setting": setting.name,
            "batch": setting.batch,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "in_training_images": asdict(costs) | {"run": costs.run},
            "outcomes": [
                row | {"outcomes": [asdict(outcome) for outcome in row["outcomes"]]} for row in outcomes(setting, costs)
            ],
        }
        for setting, costs in measured
    ]


class Listener(logging.Handler):
    """Keeps what the callback says of its costs at the end of a training."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def emit(self, record: logging.LogRecord) -> None:
        if found := re.search(r"explained \d+ of \d+ scheduled runs, [\d.]+% of the time", record.getMessage()):
            self.said = found[0]


@contextmanager
def listening() -> Iterator[Listener]:
    """Hear the callback's log lines."""
    listener, level = Listener(), logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield listener
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)


def share_said(said: str) -> float:
    """The share of the time in the callback's line."""
    return float(said.rsplit(", ", 1)[1].split("%")[0]) / 100


def real_round(setting: Setting, epochs: int, steps: int) -> list[dict[str, Any]]:
    """Trainings without the callback, and with it: without a limit, and with one.

    Each with it lies between two without, whose mean it is compared with.
    """
    without, rows = [fit(setting, epochs, steps, [])], []
    for limit in (1, REAL_LIMIT):
        callback = Timed(max_overhead=limit)
        with listening() as listener:
            seconds = fit(setting, epochs, steps, [callback])
        without.append(fit(setting, epochs, steps, []))
        hooks = sum(callback.first + callback.runs + callback.end)
        rows.append(
            {
                "limit": limit,
                "said": listener.said,
                "share_said": share_said(listener.said),
                "share_of_hooks": hooks / seconds,
                "share_of_end": callback.end[0] / seconds,
                "share_on_top": 1 - statistics.mean(without[-2:]) / seconds,
                "without_by_without": max(without[-2:]) / min(without[-2:]),
            }
        )
    return rows


def real_table(rows: list[dict[str, Any]]) -> str:
    """What the callback says beside what was measured around it."""
    heads = ("max_overhead", "it says", "its hooks", "the last of them", "on top of none", "two of none")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        hooks = f"{row['share_of_hooks']:.1%} | {row['share_of_end']:.1%}"
        on_top = f"{row['share_on_top']:.1%} | {row['without_by_without']:.2f}"
        lines.append(f"| {row['limit']} | {row['said']} | {hooks} | {on_top} |")
    for limit in (1, REAL_LIMIT):
        said, hooks, end, on_top = (
            statistics.median(row[name] for row in rows if row["limit"] == limit)
            for name in ("share_said", "share_of_hooks", "share_of_end", "share_on_top")
        )
        lines.append(f"| {limit} | median {said:.1%} | {hooks:.1%} | {end:.1%} | {on_top:.1%} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--real", action="store_true", help="whole trainings of a small network instead")
    parser.add_argument("--rounds", type=int, default=3, help="of the real trainings, which take turns")
    parser.add_argument("--epochs", type=int, help="that are measured, two at least: 6, and in a real training 40")
    parser.add_argument("--steps", type=int, help="in each of them: 4, and in a real training 10")
    parser.add_argument("--json", type=Path, help="benchmarks/results/overhead.json, or overhead_real.json")
    options = parser.parse_args()
    if options.real:
        epochs, steps = options.epochs or 40, options.steps or 10
        fit(SMALL, 1, steps, [GFICallback()])  # all is imported, and kernels are found
        result = [row for _ in range(options.rounds) for row in real_round(SMALL, epochs, steps)]
        print(f"\n{SMALL.name}, {epochs} epochs of {steps} steps of {SMALL.batch} images\n\n{REAL_CAPTION}\n")
        print(real_table(result))
    else:
        epochs, steps = options.epochs or 6, options.steps or 4
        measured = [(SETTINGS[name], measure(SETTINGS[name], epochs, steps)) for name in options.settings]
        result = report(measured)
        print(f"\n{CAPTION}\n{tables(measured)}")
    path = options.json or Path("benchmarks/results", "overhead_real.json" if options.real else "overhead.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
