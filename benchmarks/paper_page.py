"""The page on the paper's experiments, from the JSON files that their scripts wrote.

    python benchmarks/paper_page.py docs/paper.md

What stands on the page above its first section is written by hand, and stays.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import paper_adversarial
import paper_backgrounds
import paper_base_layers
import paper_class_discrimination
import paper_pointing_game
import paper_stages
from bench.experiments import RESULTS, section
from bench.tables import handwritten

from gfi_lightning import UsageError

EXPERIMENTS = [
    script.EXPERIMENT
    for script in (
        paper_pointing_game,
        paper_class_discrimination,
        paper_base_layers,
        paper_adversarial,
        paper_stages,
        paper_backgrounds,
    )
]

INTRODUCTION = """\
# The paper's experiments

Du, Liu, Song, Hu: "Towards Explanation of DNN-based Prediction with Guided Feature Inversion", KDD 2018, repeated as
far as network and images could be had. Everywhere here the network is MobileNetV2 with ImageNet weights instead of
VGG-19, the images are from PASCAL VOC 2007's test set, squeezed to 224 × 224 pixels without cropping, a few dozen
instead of thousands, and "GFI, default" is this package's default recipe. The paper's own, which takes ten times as
long, is in the pointing game alone. So these are the paper's questions, asked of another recipe. **The paper's figures
are therefore context, not a target.** Brackets: 95 % bootstrap intervals over the images (2,000 resamples); with so few
images most differences within a table are within them.

Each section is the output of a script, `benchmarks/paper_….py`, and `benchmarks/paper_page.py` joins them.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files are")
    options = parser.parse_args(arguments)
    reports = [
        (experiment, json.loads((options.results / experiment.json.name).read_text(encoding="utf-8")))
        for experiment in EXPERIMENTS
    ]
    recipes = [report["recipe"] for _, report in reports]
    if any(recipe != recipes[0] for recipe in recipes):
        stale = ", ".join(str(experiment.json) for experiment, report in reports if report["recipe"] != recipes[0])
        raise UsageError(f"{stale} is of another default recipe than {EXPERIMENTS[0].json}: run those scripts again.")
    written = [handwritten(options.page, INTRODUCTION), *(section(*pair) for pair in reports)]
    options.page.write_text("\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
