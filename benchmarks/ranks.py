"""How much time sharing the samples over two processes saves: 32 samples, with the same threads per process.

Each figure is the time of whole runs of the callback in a real training, from the first rank's reading of the samples'
maps to the written picture: explained, gathered, drawn and logged. One process trains alone, two by DDP (gloo).
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from bench.turns import ratios, take_turns
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


class Timed(GFICallback):
    """Writes down how long each run took."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seconds = []

    def _run(self, *args):
        start = time.perf_counter()
        scalars = super()._run(*args)
        self.seconds.append(time.perf_counter() - start)
        return scalars


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
    callback = Timed(every_n_steps=1, num_samples=training.samples, layer="network.layer3", max_overhead=1)
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
    results.put((rank, callback.seconds))


def seconds_per_run(training, ranks):
    """The slowest process's median, the first run aside, which reads the samples and finds its kernels."""
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
    return max(statistics.median(seconds[1:]) for seconds in measured)


def works(training: Training) -> dict[int, Callable[[], float]]:
    """Training in one process and in two: each returns its seconds."""
    return {ranks: partial(seconds_per_run, training, ranks) for ranks in (1, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=Training.samples)
    parser.add_argument("--size", type=int, default=Training.size, help="of the images, in px")
    parser.add_argument("--threads", type=int, default=Training.threads, help="per process")
    parser.add_argument("--runs", type=int, default=Training.runs)
    parser.add_argument("--rounds", type=int, default=3, help="one process and two take turns")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ranks.json"))
    options = parser.parse_args()
    training = Training(options.samples, options.size, options.threads, options.runs)
    rounds = take_turns(works(training), options.rounds)
    two_to_one = ratios(rounds, 2, 1)
    table = {
        "samples": options.samples,
        "size": options.size,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "ratio": statistics.median(two_to_one),
        "ratios": two_to_one,
        "rounds": [{"one": measured[1], "two": measured[2]} for measured in rounds],
    }
    print(f"\n{options.samples} samples of {options.size} px, ResNet-18, {options.threads} thread(s) per process")
    print("round   one process / s   two processes / s   ratio")
    for number, (measured, ratio) in enumerate(zip(rounds, two_to_one, strict=True)):
        print(f"{number:5}   {measured[1]:15.2f}   {measured[2]:17.2f}   {ratio:5.2f}")
    print(f"median ratio {table['ratio']:.2f}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
