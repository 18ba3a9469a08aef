"""Which method's heatmaps are right? Methods × metrics × cost on photographs with boxes, with intervals.

    python benchmarks/quality.py --data VOC --ids eval.txt --tune train.txt --network mobilenet_v2_100 --json out.json

--data is any folder in VOC's form (JPEGImages, Annotations), --ids a list of its images, one id a line, and --tune one
of others, on which alone the α of the localisation error is tuned. Of both, those images are taken whose boxes are of
one class, and the target is the class that the network predicts. Where it is known what its classes are called in the
annotations (by the network's class_names or --hits), only images whose prediction is right are taken.

--network is module:function, and the function returns (model, preprocess) or more, see bench.networks.Network.

On Linux a process that keeps its memory is about 1.6 times as fast on the CPU:
MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=16000000000 python benchmarks/quality.py …
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench.cases import Case, hits, names_from_list, predicted_cases
from bench.measures import CURVE_STEPS, RADIUS, Bench, Plan
from bench.methods import FAMILIES, Method, find_methods, recipe_fields, reference_method
from bench.networks import Network, find_network, find_object, peer_layers
from bench.progress import say
from bench.rows import Row
from bench.tables import handwritten, markdown, rows_from_json, to_json
from bench.voc import of_one_class, read_ids, read_photographs

from gfi_lightning import Recipe, UsageError
from gfi_lightning.inversion.recipes import RECIPES

OF_SOME_ROWS = ("recipes", "plan")  # of what a report is about: on these not every row depends

HOW = f"""\
Every image's objects are of one class, and the explained class is the predicted one. Brackets: 95 % bootstrap
intervals over the images (2,000 resamples). Slow methods were run on fewer images, as their cells say, and are
compared on those. Rows "best layer of each column" take the better layer by these very images, which flatters them.

- pointing hit: the map's maximum lies in a box. Energy in the box: the share of the map's sum. Localisation error: the
  tightest box around map > α · mean has an IoU of at most 0.5 with every box; α is tuned for each method, elsewhere.
- insertion, deletion: area under the probability in {CURVE_STEPS} steps, blurred baseline.
  Average drop, increase in confidence: on image · map, the map divided by its maximum.
- similarity: rank correlation between the maps of the trained network and of one whose layers lost their weights.
  Sensitivity: largest relative change under uniform noise of {RADIUS:g} of the image's range.
- 1 − rank correlation: median over the images of the difference between the maps of the same weights.
- passes: per image and target; one that is broken off halfway counts as a whole one. Time: each batch in turn with
  Grad-CAM.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    logging.getLogger("gfi_lightning").setLevel(logging.WARNING)  # else each explanation tells its layer
    network = find_network(options.network)
    network.model.to(options.device)
    wanted, other = read_ids(options.ids), [] if options.tune is None else read_ids(options.tune)
    # Never by an image that is reported, even where the lists overlap.
    tune = [name for name in other if name not in set(wanted)]
    cases, rate = chosen(network, options, wanted, options.limit)
    tuning, _ = chosen(network, options, tune, options.tune_limit)
    if not cases:
        raise UsageError(f"{options.ids} holds no image with objects of one class that is predicted right.")
    layers = tuple(options.layers or network.layers or peer_layers(network.model, first_image(network, cases)))
    recipes = RECIPES if options.recipes is None else find_object(options.recipes)
    methods = find_methods(network, layers, options.methods, recipes)
    about = described(options, cases, tuning, rate, layers, recipes)
    bench = Bench(network, reference_method(layers), cases, tuning, plan_of(options), say)
    everything = find_methods(network, layers, recipes=recipes)
    rows = [row for path in earlier_reports(options) for row in earlier_rows(path, about, everything)]
    warming_up = torch.tensor([cases[0].target], device=network.device)
    bench.reference.explain(network.model, first_image(network, cases), warming_up)
    for number, method in enumerate(methods, 1):
        if method.name in {row.name for row in rows}:
            continue
        say(f"[{number} of {len(methods)}] {method.name}")
        rows.append(bench.measure(method))
        write(options, to_json(sorted_as(methods, rows), bench.reference.name, about))
    report = to_json(sorted_as(methods, rows), bench.reference.name, about)
    write(options, report)
    print(markdown(report))
    if any(row.failed for row in rows):
        sys.exit(1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Plan()
    parser.add_argument("--data", type=Path, required=True, help="a folder with JPEGImages and Annotations")
    parser.add_argument("--ids", type=Path, required=True, help="list of the images that are reported")
    parser.add_argument("--tune", type=Path, help="list of other images, for α; without it no localisation error")
    parser.add_argument("--network", required=True, help="module:function, or a function of bench.networks")
    parser.add_argument("--hits", type=Path, help="JSON list of {id, voc, imagenet}: what classes are called")
    parser.add_argument("--all-predictions", action="store_true", help="also images whose prediction is wrong")
    parser.add_argument(
        "--methods", nargs="+", default=FAMILIES, metavar="METHOD", help=f"of {', '.join(FAMILIES)}, ours:RECIPE"
    )
    parser.add_argument("--layers", nargs="+", help="of the network, for the other methods; the coarsest last")
    parser.add_argument("--recipes", help="module:dict of recipes, or of arguments of GuidedFeatureInversion")
    parser.add_argument("--limit", type=int, help="of the images that are reported; none: all")
    parser.add_argument("--tune-limit", type=int, default=100)
    parser.add_argument("--slow-limit", type=int, default=defaults.slow_limit, help="images for slow methods")
    parser.add_argument("--expensive-limit", type=int, default=defaults.expensive_limit, help="for expensive metrics")
    parser.add_argument("--floor-limit", type=int, default=defaults.floor_limit, help="images for the noise floor")
    parser.add_argument("--slow-expensive-limit", type=int, default=defaults.slow_expensive_limit)
    parser.add_argument("--samples", type=int, default=defaults.samples, help="of noise, for the sensitivity")
    parser.add_argument("--stages", type=int, default=defaults.stages, help="of the randomisation")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--bf16", action="store_true", help="float32 against a model of bfloat16, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/quality.json"))
    parser.add_argument("--markdown", type=Path, help="write the tables as a page")
    resume = "keep the rows of earlier reports on the same images that would be the same; none given: of --json"
    parser.add_argument("--resume", type=Path, nargs="*", metavar="JSON", help=resume)
    return parser.parse_args(arguments)


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(**{name: value for name, value in vars(options).items() if name in Plan.__dataclass_fields__})


def chosen(
    network: Network, options: argparse.Namespace, ids: Sequence[str], limit: int | None
) -> tuple[list[Case], float | None]:
    """The images that are taken, at most so many; and the share of right predictions among those with one class."""
    names = {} if options.hits is None else names_from_list(options.hits)
    names |= network.class_names or {}
    right = bool(names) and not options.all_predictions
    photographs = of_one_class(read_photographs(options.data, ids))
    cases: list[Case] = []
    seen = 0
    for start in range(0, len(photographs), 16):
        if limit is not None and len(cases) >= limit:
            break
        predicted = predicted_cases(network, photographs[start : start + 16])
        seen += len(predicted)
        cases += hits(predicted, names) if right else predicted
    rate = len(cases) / seen if right and seen else None
    say(f"{len(cases)} of {seen} images with objects of one class are taken" + (", predicted right" if right else ""))
    return cases[:limit], rate


def first_image(network: Network, cases: Sequence[Case]) -> torch.Tensor:
    return cases[0].photograph.image(network.preprocess)[None].to(network.device)


def described(
    options: argparse.Namespace,
    cases: Sequence[Case],
    tuning: Sequence[Case],
    rate: float | None,
    layers: Sequence[str],
    recipes: Mapping[str, Any],
) -> dict[str, Any]:
    """What was measured on what, without any path of this machine."""
    return {
        "network": options.network,
        "data": options.data.name,
        "ids": options.ids.name,
        "tune": None if options.tune is None else options.tune.name,
        "right_predictions": rate,
        "layers": list(layers),
        "images": [case.photograph.id for case in cases],
        "targets": [case.target for case in cases],
        "tuning_images": len(tuning),
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "plan": asdict(plan_of(options)),
        "curve_steps": CURVE_STEPS,
        "radius": RADIUS,
        "recipes": {name: plain(recipe) for name, recipe in recipes.items()},
    }


def plain(recipe: Any) -> Any:
    """A recipe, its name, or arguments that hold one, in a form that JSON knows."""
    if isinstance(recipe, Mapping):
        return {name: plain(value) for name, value in recipe.items()}
    return recipe_fields(recipe) if isinstance(recipe, Recipe) else str(recipe)


def earlier_reports(options: argparse.Namespace) -> list[Path]:
    if options.resume is None:
        return []
    return options.resume or [path for path in [options.json] if path.is_file()]


def earlier_rows(path: Path, about: dict[str, Any], methods: Sequence[Method]) -> list[Row]:
    """The rows of a report on the same images that went well, and would be the same now."""
    report = json.loads(path.read_text(encoding="utf-8"))
    differing = [key for key, value in about.items() if key not in OF_SOME_ROWS and report.get(key) != value]
    if differing:
        raise UsageError(f"--resume: {path} is of another run ({', '.join(differing)} differ): leave it out.")
    known = {method.name: method for method in methods}
    rows = [row for row in rows_from_json(report) if not row.failed]
    kept = [
        row
        for row in rows
        if row.name in known and depends_on(known[row.name], report) == depends_on(known[row.name], about)
    ]
    say(f"{len(kept)} rows are taken from {path}; {len(rows) - len(kept)} are of another recipe, or of another plan")
    return kept


def depends_on(method: Method, about: dict[str, Any]) -> dict[str, Any]:
    """What of the recipes and the plan has to do with one method's row."""
    plan, recipes = about.get("plan", {}), about.get("recipes", {})
    limits = {name: value for name, value in plan.items() if method.slow or not name.startswith("slow_")}
    return limits | {"recipe": recipes.get(method.recipe)}


def sorted_as(methods: Sequence[Method], rows: Sequence[Row]) -> list[Row]:
    names = [method.name for method in methods]
    return sorted(rows, key=lambda row: names.index(row.name) if row.name in names else len(names))


def write(options: argparse.Namespace, report: dict[str, Any]) -> None:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    if options.markdown is not None:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        text = handwritten(options.markdown, "# Quality\n") + "\n" + section(report)
        options.markdown.write_text(text, encoding="utf-8")


def section(report: dict[str, Any]) -> str:
    """The report as a section of the page; what stands above it there stays."""
    right = report["right_predictions"]
    hits_told = "" if right is None else f" ({right:.0%} of the images with one class are predicted right)"
    return (
        "## What was measured\n\n"
        f"{report['network']} on {len(report['images'])} images of {report['data']}/{report['ids']}"
        f"{hits_told}; α tuned on {report['tuning_images']} images of {report['tune']}. {report['device']}, "
        f"{report['threads']} thread(s), torch {report['torch']}.\n\n{HOW}\n{markdown(report)}"
    )


if __name__ == "__main__":
    main()
