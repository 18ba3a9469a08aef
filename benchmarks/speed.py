"""How fast is an explanation: beside the passes that it cannot do without, and beside other methods?

The floor: bare passes through the network, of the shapes that the explanation has and in the same memory format, are
run in turns with the explanation itself. "all passes" are those that the recipe asks for; "steps alone" leaves out the
first look at the images and the evidence, which are work as well.

With --data, the others: each method explains the same photographs in turns with the default recipe, in batches of 8,
and insertion − deletion says what the maps are worth.

    python benchmarks/speed.py [--data ../shared/data/voc07 --ids ../shared/data/voc07/eval.txt]
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torchvision
from bench.bootstrap import Estimate, estimate, paired_difference
from bench.cases import Batch, batches
from bench.cost import counted, seconds
from bench.experiments import right_cases
from bench.floor import BarePasses, Floor
from bench.machine import device_name
from bench.methods import Method, find_methods, reference_method
from bench.networks import Network, find_network, peer_layers
from bench.progress import say
from bench.release import as_released
from bench.tables import table
from bench.voc import read_ids

from gfi_lightning import GuidedFeatureInversion, metrics
from gfi_lightning.inversion.recipes import RECIPES

NETWORKS = {"resnet18": 64, "mobilenet_v2": 224, "resnet50": 224, "swin_t": 224}
CURVE_STEPS = 14
OURS = "GFI, default"
Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds, and the quarter of them on either side of it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> "Ratio":
        low, median, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} … {self.high:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.getLogger("gfi_lightning").setLevel(logging.WARNING)
    report = {"machine": machine(options.device), "floor": floors(options)}
    write(options, report)
    print("{device}, {threads} threads, PyTorch {torch}\n".format(**report["machine"]))
    print(floor_table(report["floor"]) + "\n")
    if options.data is not None:
        report["others"] = others(options)
        write(options, report)
        print(f"{len(report['others']['images'])} photographs:\n\n{others_table(report['others'])}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=[*NETWORKS], choices=[*NETWORKS])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--recipes", nargs="+", default=["default"], choices=[*RECIPES])
    parser.add_argument("--patience", type=float, default=40, help="seconds for a row, but 3 rounds at least")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="a folder with JPEGImages and Annotations; none: no other methods")
    parser.add_argument("--ids", type=Path, help="list of the images")
    parser.add_argument("--network", default="mobilenet_v2_100", help="for them; module:function, or of bench.networks")
    parser.add_argument("--limit", type=int, default=8, help="images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of images (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/speed.json"))
    options = parser.parse_args(arguments)
    if (options.data is None) != (options.ids is None):
        parser.error("--data and --ids go together")
    return options


def machine(device: str) -> dict[str, Any]:
    """What all this was measured on."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def floors(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each network, batch and recipe."""
    rows = []
    for name in options.networks:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval().to(options.device)
        for recipe in options.recipes:
            for batch in options.batches:
                images = torch.rand(batch, 3, NETWORKS[name], NETWORKS[name], device=options.device)
                gfi = GuidedFeatureInversion(model, recipe=recipe)
                measured = beside_the_floor(model, gfi, images, options.patience)
                rows.append({"network": name, "side": NETWORKS[name], "recipe": recipe, "batch": batch} | measured)
                say(floor_table(rows[-1:]))
    return rows


def beside_the_floor(
    model: torch.nn.Module, gfi: GuidedFeatureInversion, images: torch.Tensor, patience: float
) -> dict[str, Any]:
    """How many times as long as bare passes an explanation takes, by round."""
    targets = torch.arange(len(images), device=images.device)
    gfi.explain(images, targets)  # finds the layers
    is_last = gfi.capacity.gains_by_channels_last(images)
    same = images.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
    bare = BarePasses(model, gfi, same)
    bare.measure()

    def one_round() -> tuple[float, Floor]:
        floor = bare.measure()
        return seconds(lambda: gfi.explain(images, targets), images.device), floor

    rounds = repeated(one_round, patience)
    return {
        "chunks": [len(part) for part in images.split(gfi.capacity.chunk_size_for(images))],
        "memory format": "channels last" if is_last else "as given",
        "all passes": [ours / floor.total for ours, floor in rounds],
        "steps alone": [ours / floor.steps for ours, floor in rounds],
    }


def repeated(one_round: Callable[[], Measured], patience: float) -> list[Measured]:
    """Some rounds, as many as there is patience for, but 3 at least and 25 at most."""
    start, rounds = time.perf_counter(), []
    while len(rounds) < 3 or (time.perf_counter() - start < patience and len(rounds) < 25):
        rounds.append(one_round())
    return rounds


def floor_table(rows: Sequence[dict[str, Any]]) -> str:
    """An explanation's time over that of bare passes: the median of the rounds, and their middle half."""
    columns = ("all passes", "steps alone")
    header = ["network", "px", "recipe", "batch", *(f"over {column}" for column in columns), "memory format"]
    lines = [
        [
            row["network"],
            str(row["side"]),
            row["recipe"],
            str(row["batch"]),
            *(str(Ratio.of(row[column])) for column in columns),
            row["memory format"],
        ]
        for row in rows
    ]
    return table(header, lines)


def others(options: argparse.Namespace) -> dict[str, Any]:
    """Each method's time as a ratio to ours, batch by batch, its passes, and what its maps are worth."""
    network = find_network(options.network)
    network.model.to(options.device)
    cases = right_cases(network, options.data, read_ids(options.ids), options.limit)
    parts = list(batches(cases, network, options.batch_size))
    methods = methods_of(network, parts[0].images)
    methods[OURS].explain(network.model, parts[0].images, parts[0].targets)
    found = {name: measured(method, methods[OURS], network, parts) for name, method in methods.items()}
    return {
        "network": options.network,
        "data": options.data.name,
        "ids": options.ids.name,
        "images": [case.photograph.id for case in cases],
        "batch": options.batch_size,
        "methods": found,
    }


def methods_of(network: Network, images: torch.Tensor) -> dict[str, Method]:
    """Ours, Grad-CAM, and those that take long."""
    layers = network.layers or peer_layers(network.model, images[:1])
    slow = ["scorecam", "occlusion", "integrated-gradients", "perturbation"]
    release = partial(as_released, layer=layers[-1], score=network.score)
    ours = find_methods(network, layers, ["ours:default"], {"default": "default"})[0]
    everyone = [
        ours,
        Method("the authors' release", "release", release),
        *find_methods(network, layers[-1:], slow),
        reference_method(layers),
    ]
    return {method.name: method for method in everyone}


def measured(method: Method, ours: Method, network: Network, parts: Sequence[Batch]) -> dict[str, Any]:
    """One method over all batches, each time with ours beside it."""
    say(method.name)
    ratios, worth, passes_made = [], [], []
    for part in parts:
        arguments = (network.model, part.images, part.targets)
        base = seconds(lambda arguments=arguments: ours.explain(*arguments), network.device)
        start = time.perf_counter()
        with counted(network.model) as passes:
            maps = method.explain(*arguments).cpu()  # and so a GPU is done, too
        ratios.append((time.perf_counter() - start) / base)
        passes_made.append((passes.forwards / len(part), passes.backwards / len(part)))
        curves = metrics.insertion_deletion(
            network.model, part.images, maps.to(part.images), part.targets,
            steps=CURVE_STEPS, baseline="blur", score=network.score,
        )  # fmt: skip
        worth += curves.difference.double().tolist()
    forwards, backwards = (statistics.mean(count) for count in zip(*passes_made, strict=True))
    return {"ratios": ratios, "forwards": forwards, "backwards": backwards, "insertion − deletion": worth}


def others_table(report: dict[str, Any]) -> str:
    """Time by that of ours, passes by image, and insertion − deletion, also of ours less the other's."""
    ours = np.array(report["methods"][OURS]["insertion − deletion"])
    lines = []
    for name, found in report["methods"].items():
        worth = np.array(found["insertion − deletion"])
        gain = "–" if name == OURS else interval(paired_difference(ours, worth), "+")
        passes = f"{found['forwards']:.0f} + {found['backwards']:.0f}"
        lines.append([name, f"{statistics.median(found['ratios']):.2f}", passes, interval(estimate(worth)), gain])
    return table(["", "time, ours = 1", "passes", "insertion − deletion", "ours less it"], lines)


def interval(figure: Estimate, sign: str = "") -> str:
    """A figure with its 95 % interval."""
    return f"{figure.value:{sign}.3f} ({figure.low:{sign}.3f} … {figure.high:{sign}.3f})"


def write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
