"""What do more steps buy, and what does stopping early save? Insertion − deletion against passes.

The default recipe with more and fewer steps, and, where there are many, with images that stop when a step has moved
their mask by less than a tolerance. To be run on training images, not on those by which the methods are compared.

    python benchmarks/steps.py --data ../shared/data/voc07 --ids ../shared/data/voc07/train.txt
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.bootstrap import estimate, paired_difference
from bench.cases import Batch, batches
from bench.cost import counted
from bench.experiments import right_cases
from bench.methods import explain_ours
from bench.networks import Network, find_network
from bench.tables import table
from bench.voc import read_ids

from gfi_lightning import Recipe, metrics
from gfi_lightning.inversion.recipes import DEFAULT

STEPS = ((0, 0), (1, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 12))
LONG = (6, 12)
TOLERANCES = (0.001, 0.002, 0.005, 0.01, 0.02)
CURVE_STEPS = 14


def recipes(steps: Sequence[tuple[int, int]], tolerances: Sequence[float]) -> dict[str, Recipe]:
    """The default with other numbers of steps in stages 1 and 2, and the longest with tolerances."""
    named = {f"{first} + {second}": with_steps(first, second) for first, second in steps}
    long = with_steps(*LONG)
    return named | {f"{LONG[0]} + {LONG[1]}, tolerance {one}": replace(long, tolerance=one) for one in tolerances}


def with_steps(first: int, second: int) -> Recipe:
    return replace(DEFAULT, inversion_steps=first, target_steps=second)


def measured(network: Network, parts: Sequence[Batch], recipe: Recipe) -> dict[str, Any]:
    """What one recipe's maps are worth, image by image, and its passes forward and back, by image."""
    worth, passes_made = [], []
    for part in parts:
        with counted(network.model) as passes:
            options = {"recipe": recipe, "score": network.score}
            maps = explain_ours(network.model, part.images, part.targets, options=options)
        curves = metrics.insertion_deletion(
            network.model, part.images, maps, part.targets, steps=CURVE_STEPS, baseline="blur", score=network.score
        )
        worth += curves.difference.double().tolist()
        passes_made.append((passes.forwards + passes.backwards) / 2 / len(part))
    return {"insertion − deletion": worth, "pairs of passes": float(np.mean(passes_made))}


def as_text(found: dict[str, dict[str, Any]], base: str) -> str:
    """A row for each recipe; base: the one that the others are compared with."""
    reference, lines = np.array(found[base]["insertion − deletion"]), []
    for name, one in found.items():
        worth = np.array(one["insertion − deletion"])
        figure, less = estimate(worth), paired_difference(worth, reference)
        difference = "–" if name == base else f"{less.value:+.3f} ({less.low:+.3f} … {less.high:+.3f})"
        lines.append([name, f"{one['pairs of passes']:.1f}", f"{figure.value:.3f}", difference])
    return table(["steps of stages 1 + 2", "pairs of passes", "insertion − deletion", f"less {base}"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with JPEGImages and Annotations")
    parser.add_argument("--ids", type=Path, required=True, help="list of the images")
    parser.add_argument("--network", default="mobilenet_v2_100", help="module:function, or one of bench.networks")
    parser.add_argument("--limit", type=int, default=8, help="images (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/steps.json"))
    options = parser.parse_args(arguments)
    logging.getLogger("gfi_lightning").setLevel(logging.WARNING)
    network = find_network(options.network)
    cases = right_cases(network, options.data, read_ids(options.ids), options.limit)
    parts = list(batches(cases, network, 8))
    found = {name: measured(network, parts, recipe) for name, recipe in recipes(STEPS, TOLERANCES).items()}
    base = f"{DEFAULT.inversion_steps} + {DEFAULT.target_steps}"
    report = {
        "network": options.network,
        "data": options.data.name,
        "ids": options.ids.name,
        "images": [case.photograph.id for case in cases],
        "torch": torch.__version__,
        "base": base,
        "recipes": found,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"{len(cases)} photographs of {options.ids.name}, {options.network}:\n\n{as_text(found, base)}")


if __name__ == "__main__":
    main()
