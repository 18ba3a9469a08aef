"""How much time sharing the samples over two processes saves: 32 samples, with the same threads per process.

Each figure is of whole runs of the callback in a real training. A run's parts are explaining; drawing each sample's
picture, which is shared as well; and what the first process does alone, the history, overview, films and logging. One
process trains alone, two by DDP (gloo). The floor: bare passes forward and back, in one process, and in two at the same
time with half of the images each, which share what memory and caches there are.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from bench.tables import table
from bench.turns import take_turns
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from gfi_lightning import GFICallback

CLASSES = 10


@dataclass(frozen=True)
class Training:
    """What is trained, and how often the callback runs; threads are those of each process."""

    samples: int = 32
    size: int = 64
    threads: int = 1
    runs: int = 3


WHOLE, EXPLAINING, DRAWING, FIRST, FLOOR = "whole run", "explaining", "drawing", "the first one alone", "bare passes"
PARTS = (WHOLE, EXPLAINING, DRAWING, FIRST, FLOOR)
Seconds = dict[str, float]  # by part of a run


class Timed(GFICallback):
    """Writes down how long each run took, and its parts."""

    def __init__(self, images_each, **options):
        super().__init__(**options)
        self.images_each = images_each  # (n, C, H, W), as many as each process explains
        self.runs: list[Seconds] = []

    def _run(self, trainer, pl_module, *args):
        self.began = time.perf_counter()
        self.runs.append(dict.fromkeys((EXPLAINING, DRAWING, FIRST), 0.0))
        scalars = super()._run(trainer, pl_module, *args)
        if not scalars:  # this step had been explained
            self.runs.pop()
            return scalars
        self.runs[-1][WHOLE] = time.perf_counter() - self.began
        self.runs[-1][FLOOR] = bare_passes(pl_module.network, self.images_each)  # as the others do, at the same time
        return scalars

    def _draw(self, *args):
        start = time.perf_counter()
        self.runs[-1][EXPLAINING] = start - self.began
        drawn = super()._draw(*args)
        self.runs[-1][DRAWING] = time.perf_counter() - start
        return drawn

    def _show(self, *args):
        start = time.perf_counter()
        scalars = super()._show(*args)
        self.runs[-1][FIRST] = time.perf_counter() - start
        return scalars


def bare_passes(network, images, count=4):
    """The seconds of some passes forward, and back to the images."""
    network.eval()
    start = time.perf_counter()
    for _ in range(count):
        inputs = images.clone().requires_grad_()
        torch.autograd.grad(network(inputs).sum(), inputs)
    network.train()
    return time.perf_counter() - start


class Classifier(L.LightningModule):
    """ResNet-18."""

    def __init__(self):
        super().__init__()
        self.network = resnet18(num_classes=CLASSES)

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(training, rank, ranks, port, results):
    """One process of a training with a few runs of the callback."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "benchmark"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    torch.set_num_threads(training.threads)
    L.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(64, 3, training.size, training.size), torch.arange(64) % CLASSES)
    images_each = torch.randn(training.samples // ranks, 3, training.size, training.size)
    options = {"num_samples": training.samples, "layer": "network.layer3", "max_overhead": 1}
    callback = Timed(images_each, every_n_steps=1, **options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            strategy="ddp" if ranks > 1 else "auto",
            devices=ranks,
            max_steps=training.runs + 1,
            logger=TensorBoardLogger(folder),
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(), DataLoader(data, 8), DataLoader(data, 8))
    results.put((rank, callback.runs))


def seconds_per_run(training: Training, ranks: int) -> Seconds:
    """Of each part the slowest process's median, the first run aside, which reads the samples and finds its kernels."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=train, args=(training, rank, ranks, port, results)) for rank in range(ranks)]
    for process in processes:
        process.start()
    measured = [results.get(timeout=1800)[1] for _ in processes]
    for process in processes:
        process.join()
    return {part: max(statistics.median(run[part] for run in runs[1:]) for runs in measured) for part in PARTS}


def works(training: Training) -> dict[int, Callable[[], float]]:
    """Training in one process and in two: each returns the seconds of a whole run."""
    return {ranks: lambda ranks=ranks: seconds_per_run(training, ranks)[WHOLE] for ranks in (1, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=Training.samples, help="an even number")
    parser.add_argument("--size", type=int, default=Training.size, help="of the images, in px")
    parser.add_argument("--threads", type=int, default=Training.threads, help="per process")
    parser.add_argument("--runs", type=int, default=Training.runs)
    parser.add_argument("--rounds", type=int, default=3, help="one process and two take turns")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ranks.json"))
    options = parser.parse_args()
    training = Training(options.samples, options.size, options.threads, options.runs)
    rounds = take_turns({ranks: partial(seconds_per_run, training, ranks) for ranks in (1, 2)}, options.rounds)
    print(f"{options.samples} samples of {options.size} px, ResNet-18, {options.threads} thread(s) per process\n")
    print(as_table(rounds))
    about = {"samples": options.samples, "size": options.size, "threads": options.threads, "cores": os.cpu_count()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(about | {"rounds": rounds}, indent=2))


def as_table(rounds: Sequence[dict[int, Seconds]]) -> str:
    """Each part as a share of one process's whole run, and what two processes make of it."""
    lines = []
    for part in PARTS:
        shares = [measured[1][part] / measured[1][WHOLE] for measured in rounds]
        ratios = [measured[2][part] / measured[1][part] for measured in rounds]
        share = "" if part == FLOOR else f"{statistics.median(shares):.2f}"
        lines.append([part, share, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} – {max(ratios):.2f}"])
    return table(["", "share of a run by one", "two / one", "lowest – highest"], lines)


if __name__ == "__main__":
    main()
