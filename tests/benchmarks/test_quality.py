"""The whole script, on a folder and a network that it has never seen."""

import json
import re
from functools import partial

import numpy as np
import pytest
import quality
import torch
from bench.cases import batches
from bench.cost import counted
from bench.networks import find_network, find_object
from bench.peers import grad_cam
from bench.perturbation import MeaningfulPerturbation
from bench.rows import GROUPS
from PIL import Image

from gfi_lightning import UsageError, metrics
from tests.benchmarks.conftest import write_photograph

EVAL, TUNE = [f"eval{number}" for number in range(5)], [f"tune{number}" for number in range(4)]
EXPENSIVE = ["--expensive-limit", "2", "--samples", "2", "--stages", "2", "--slow-expensive-limit", "1"]


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A folder with a bright disc in each picture, its lists, and a module with a network."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in [*EVAL, *TUNE]:
        x, y = (int(value) for value in generator.integers(4, 28, 2))
        write_photograph(tmp_path, name, (48, 40), [("disc", (x, y, x + 15, y + 11))])
        pixels = generator.integers(0, 90, (40, 48, 3))
        pixels[y - 1 : y + 11, x - 1 : x + 15] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    write_photograph(tmp_path, "two", (48, 40), [("disc", (1, 1, 9, 9)), ("ring", (9, 9, 12, 12))])
    (tmp_path / "eval.txt").write_text("\n".join([*EVAL, "two"]))
    (tmp_path / "tune.txt").write_text("\n".join([*TUNE, *EVAL[:2]]))  # the lists overlap
    (tmp_path / "a_network.py").write_text(
        "import torch\n"
        "from torchvision.transforms import v2\n"
        "from tests.networks import ToyCNN\n"
        "resize = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])\n"
        "def make(): return ToyCNN(), lambda image: 4 * resize(image) - 2\n"
        "def named(): return *make(), {0: 'disc'}\n"
    )
    (tmp_path / "my_recipes.py").write_text(
        "from dataclasses import replace\n"
        "from gfi_lightning.inversion.recipes import RECIPES\n"
        "short = replace(RECIPES['paper'], target_steps=2, inversion_steps=0)\n"
        "SEARCH = {'default': short, 'mean': {'recipe': short, 'background': 'mean'}}\n"
        "AGAIN = SEARCH | {'default': replace(short, removed_weight=0.5)}\n"
    )
    return tmp_path


def run(folder, *arguments, network="a_network:make", methods=("grad-cam",)):
    where = ["--data", str(folder), "--ids", "eval.txt", "--network", network, "--json", "out.json"]
    quality.main([*where, "--batch-size", "2", *arguments, "--methods", *methods])
    return json.loads((folder / "out.json").read_text())


def test_every_method_and_metric_on_a_network_without_any_names(somewhere, capsys, monkeypatch):
    monkeypatch.setattr("bench.methods.MeaningfulPerturbation", partial(MeaningfulPerturbation, steps=3))
    given = ["--tune", "tune.txt", "--tune-limit", "2", "--markdown", "page.md", "--slow-limit", "2", *EXPENSIVE]
    report = run(somewhere, *given, "--recipes", "my_recipes:SEARCH", methods=quality.FAMILIES)
    assert report["images"] == EVAL
    assert report["layers"] == ["fine", "coarse"]
    names = list(report["methods"])
    assert names[:3] == ["GFI, default", "GFI, mean", "GFI, default, stage 1 alone"]
    assert len(names) == 3 + 2 + 4 * 2 + 3 + 4  # centre and uniform, CAMs by layer, the rest, each CAM's best
    for name, method in report["methods"].items():
        assert method["notes"] == [], name
        for key, figure in method["figures"].items():
            measured = [value for value in method["values"][key] if value is not None]
            statistic = np.median if key.startswith("floor") else np.mean
            assert figure["value"] == pytest.approx(statistic(measured), abs=1e-5), (name, key)
            assert figure["images"] == len(measured)
            assert figure["low"] <= figure["value"] <= figure["high"]
        if "best layer" not in name:
            expected = {metric.key for group in GROUPS.values() for metric in group} - {"floor_bf16", "floor_device"}
            assert expected <= set(method["figures"]), name
            assert method["seconds"]
            assert min(method["seconds"]) > 0
    slow = report["methods"]["ScoreCAM, coarse"]
    assert slow["figures"]["energy"]["images"] == 2
    assert slow["figures"]["sensitivity"]["images"] == 1
    assert (slow["forwards"], slow["backwards"]) == (7, 0)
    assert all(second > 0 for second in report["methods"]["Grad-CAM, coarse"]["seconds"])
    page = (somewhere / "page.md").read_text()
    assert "| meaningful perturbation" in page
    assert str(somewhere) not in page + (somewhere / "out.json").read_text()
    assert "pointing hit" in capsys.readouterr().out


def test_figures_are_what_the_metrics_say(somewhere):
    report = run(somewhere, "--tune", "tune.txt", *EXPENSIVE)
    network = find_network("a_network:make")
    photographs = quality.read_photographs(somewhere, EVAL)
    (batch,) = batches(quality.predicted_cases(network, photographs), network, len(EVAL))
    with counted(network.model) as passes:
        maps = grad_cam(network.model, batch.images, batch.targets, layer="coarse")
    method = report["methods"]["Grad-CAM, coarse"]
    assert (method["forwards"], method["backwards"]) == (passes.forwards / 5, passes.backwards / 5) == (1, 1)
    expected = {
        "pointing": metrics.pointing_hits(maps, batch.regions).double(),
        "energy": metrics.energy_in_region(maps, batch.regions),
        "insertion": metrics.insertion_deletion(
            network.model, batch.images, maps, batch.targets, steps=14
        ).insertion_area,
        "localization_error": (~metrics.localization_hits(maps, batch.boxes, method["alpha"])).double(),
        "sparsity": metrics.gini(maps),
    }
    for key, values in expected.items():
        assert method["values"][key] == pytest.approx(values.tolist(), abs=1e-4), key


def test_alpha_is_never_tuned_on_images_that_are_reported(somewhere, capsys):
    report = run(somewhere, "--tune", "tune.txt", *EXPENSIVE)
    assert report["tuning_images"] == len(TUNE)
    photographs = quality.read_photographs(somewhere, TUNE)
    network = find_network("a_network:make")
    (batch,) = batches(quality.predicted_cases(network, photographs), network, len(TUNE))
    maps = grad_cam(network.model, batch.images, batch.targets, layer="coarse")
    assert report["methods"]["Grad-CAM, coarse"]["alpha"] == metrics.tune_alpha(maps, batch.boxes)
    without = run(somewhere, *EXPENSIVE)["methods"]["Grad-CAM, coarse"]
    assert "localization_error" not in without["figures"]
    assert without["alpha"] is None


def test_the_limit_and_the_prediction_restrict_the_images(somewhere):
    assert run(somewhere, "--limit", "3", *EXPENSIVE)["images"] == EVAL[:3]
    with pytest.raises(UsageError, match="predicted right"):  # this network never says class 0
        run(somewhere, network="a_network:named")
    everything = run(somewhere, "--all-predictions", *EXPENSIVE, network="a_network:named")
    assert everything["images"] == EVAL
    (somewhere / "hits.json").write_text(json.dumps([{"id": "x", "voc": "disc", "imagenet": everything["targets"][0]}]))
    right = [
        name for name, target in zip(EVAL, everything["targets"], strict=True) if target == everything["targets"][0]
    ]
    listed = run(somewhere, "--hits", "hits.json", *EXPENSIVE)
    assert listed["images"] == right
    assert listed["right_predictions"] == len(right) / len(EVAL)


def test_a_method_that_fails_does_not_stop_the_others(somewhere, monkeypatch):
    def fail(*args, **options):
        raise ZeroDivisionError("nothing left")

    monkeypatch.setattr("bench.peers.Occlusion", fail)
    with pytest.raises(SystemExit):
        run(somewhere, *EXPENSIVE, methods=("occlusion", "layercam"))
    report = json.loads((somewhere / "out.json").read_text())
    assert report["methods"]["occlusion"]["notes"] == ["failed: ZeroDivisionError: nothing left"]
    assert report["methods"]["LayerCAM, fine"]["figures"]["energy"]["images"] == 5


def test_a_run_goes_on_where_it_was_left(somewhere, capsys):
    first = run(somewhere, *EXPENSIVE, methods=("centre",))
    capsys.readouterr()
    second = run(somewhere, *EXPENSIVE, "--resume", methods=("centre", "grad-cam"))
    assert "] centre" not in capsys.readouterr().err
    assert second["methods"]["centre"]["seconds"] == first["methods"]["centre"]["seconds"]
    assert "difference" in second["methods"]["centre"]["figures"]["energy"]
    with pytest.raises(UsageError, match="of another run"):
        run(somewhere, "--limit", "3", *EXPENSIVE, "--resume")


def test_what_a_change_of_a_recipe_or_of_the_plan_leaves_alone_is_not_measured_again(somewhere, capsys):
    methods = ("ours", "centre", "occlusion")
    first = run(somewhere, *EXPENSIVE, "--recipes", "my_recipes:SEARCH", "--slow-limit", "2", methods=methods)
    capsys.readouterr()
    changed = ["--recipes", "my_recipes:AGAIN", "--slow-limit", "3", "--resume"]
    again = run(somewhere, *EXPENSIVE, *changed, methods=methods)
    measured = re.findall(r"^\[\d of \d\] (.+)$", capsys.readouterr().err, re.MULTILINE)
    assert measured == ["GFI, default", "GFI, default, stage 1 alone", "occlusion"]
    assert list(again["methods"]) == list(first["methods"])
    assert again["methods"]["occlusion"]["figures"]["energy"]["images"] == 3


def test_one_recipe_alone_or_somebodys_own(somewhere):
    assert list(run(somewhere, "--limit", "1", *EXPENSIVE, methods=("ours:release",))["methods"]) == ["GFI, release"]
    methods = run(somewhere, "--recipes", "my_recipes:SEARCH", *EXPENSIVE, methods=("ours",))["methods"]
    assert list(methods) == ["GFI, default", "GFI, mean", "GFI, default, stage 1 alone"]
    assert [method["backwards"] for method in methods.values()] == [4, 4, 0]


def test_unknown_methods_are_told(somewhere):
    with pytest.raises(UsageError, match="gradcam are unknown"):
        run(somewhere, methods=("gradcam",))


def test_bfloat16_is_compared_when_it_is_asked_for(somewhere):
    report = run(somewhere, "--bf16", *EXPENSIVE, methods=("ours:default", "uniform", "centre"))
    for name in ("GFI, default", "uniform ω, coarse"):
        assert 0 < report["methods"][name]["figures"]["floor_bf16"]["value"] < 1
    assert report["methods"]["centre"]["figures"]["floor_bf16"]["value"] == 0


def test_models_are_left_without_gradients_and_hooks(somewhere):
    network = find_network("a_network:make")
    cases = quality.predicted_cases(network, quality.read_photographs(somewhere, EVAL[:2]))
    reference = quality.reference_method(("coarse",))
    bench = quality.Bench(network, reference, cases, cases, quality.Plan(expensive_limit=1, samples=1, stages=1), print)
    bench.measure(reference)
    assert all(parameter.grad is None for parameter in network.model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.model.modules())
    assert isinstance(next(network.model.parameters()), torch.nn.Parameter)


def test_the_search_starts_with_the_default_and_has_no_recipe_twice():
    recipes = find_object("bench.search:SEARCH")
    assert next(iter(recipes)) == "default"
    assert len({str(quality.recipe_fields(recipe)) for recipe in recipes.values()}) == len(recipes)
