"""Peak memory above the model: an explanation beside a training step with the same batch.

    python benchmarks/memory.py [--networks ResNet-50 ...] [--batches 1 8 ...] [--device cuda] [--json FILE]

Counted is the peak less what is there with only the model, which has no gradients yet, and the batch. So a training
step counts its activations, the gradients, the optimizer's momentum, and what the layers need for a while; an
explanation all that it needs, and its maps. The step is the second one, as there is no momentum during the first; its
gradients are cleared before the forward pass, where Lightning clears them after it and would need more. On a CPU, it is
the memory of the process that is resident, as Linux counts it; on a GPU, the tensors that PyTorch has allocated.

Each measurement is made in a fresh process, after a small step and a small explanation that load what is loaded once.
The status is 1 if an explanation needs as much as a training step.
"""

import argparse
import ctypes
import gc
import json
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from bench.machine import device_name
from bench.tables import table
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2, resnet18, resnet50, swin_t

from gfi_lightning import GuidedFeatureInversion

NETWORKS = {
    "ResNet-18": (resnet18, 64),
    "MobileNetV2": (mobilenet_v2, 224),
    "ResNet-50": (resnet50, 224),
    "Swin-T": (swin_t, 224),
}
BATCHES = (1, 8, 32)
SMALL = 64  # px, of the image that warms up: the smallest with more than one place in the last map


def train(model: nn.Module, images: Tensor, targets: Tensor) -> None:
    """Two steps; the second one needs the most."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()


def explain(model: nn.Module, images: Tensor, targets: Tensor) -> None:
    """With the default settings."""
    GuidedFeatureInversion(model).explain(images, targets)


def peak_above(work: Callable[[], Any], device: str) -> int:
    """By how many bytes the peak during a work is above what was there before."""
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide as much of the peak
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    work()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of this process that are in memory, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def measure(
    work: Callable[[nn.Module, Tensor, Tensor], None],
    build: Callable[[], nn.Module],
    size: int,
    batch: int,
    device: str,
) -> int:
    """The peak of one work above the model, in bytes."""

    def given(size: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
        images, targets = torch.randn(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)
        return build().to(device), images.to(device), targets.to(device)

    logging.getLogger("gfi_lightning").setLevel(logging.WARNING)  # else each explanation tells its layers
    for each in (train, explain):
        each(*given(SMALL, 1))
    what = given(size, batch)
    return peak_above(lambda: work(*what), device)


def in_fresh_process(function: Callable[..., int], *args: Any) -> int:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *args).result()


def row(network: str, batch: int, device: str) -> dict[str, Any]:
    """One row of the table."""
    build, size = NETWORKS[network]
    training, explanation = (
        in_fresh_process(measure, work, build, size, batch, device) / 1e6 for work in (train, explain)
    )
    return {
        "network": network,
        "px": size,
        "batch": batch,
        "training_step_mb": training,
        "explanation_mb": explanation,
        "ratio": explanation / training,
    }


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    header = ["network", "px", "batch", "training step / MB", "explanation / MB", "explanation / training step"]
    lines = [
        [
            row["network"],
            str(row["px"]),
            str(row["batch"]),
            f"{row['training_step_mb']:.0f}",
            f"{row['explanation_mb']:.0f}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return table(header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/memory.json"))
    options = parser.parse_args(arguments)
    rows = [row(network, batch, options.device) for network in options.networks for batch in options.batches]
    report = {
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    print(f"{report['device']}, PyTorch {report['torch']}\n")
    print(as_text(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(row["ratio"] >= 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
