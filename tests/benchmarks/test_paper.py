"""The scripts on the paper's experiments, each from end to end on a folder and a network that they have never seen."""

import json
from importlib import import_module

import numpy as np
import paper_page
import pytest
import torch
from bench import experiments
from bench.bootstrap import RESAMPLES
from bench.cases import batches
from bench.multilabel import LEARNING_RATE, retrain_last_layer
from bench.networks import Network, find_network
from bench.voc import Object, Photograph, read_photographs, stack_images
from paper_adversarial import bounds, fast_gradient_sign
from paper_class_discrimination import discrimination, is_apart, regions_of
from paper_pointing_game import explainers, mean_over_classes
from PIL import Image

from gfi_lightning import GuidedFeatureInversion, UsageError
from tests.benchmarks.conftest import write_photograph

EVAL, TRAIN = [f"eval{number}" for number in range(5)], [f"train{number}" for number in range(8)]
COLOURS = {"disc": (150, 0, 0), "ring": (0, 0, 150)}
EPOCHS = 40
SCRIPTS = [experiment.name for experiment in paper_page.EXPERIMENTS]
NEEDS_TRAIN = ("pointing_game", "base_layers")


def write_scene(folder, name, objects):
    """A photograph with a patch of its class's colour in each box."""
    write_photograph(folder, name, (48, 40), objects)
    generator = np.random.default_rng(len(name) + sum(map(ord, name)))
    pixels = generator.integers(0, 90, (40, 48, 3))
    for thing, (x0, y0, x1, y1) in objects:
        pixels[y0 - 1 : y1, x0 - 1 : x1] += COLOURS[thing]
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    """A folder with coloured patches, its lists, and a module with a network."""
    folder = tmp_path_factory.mktemp("voc")
    for number, name in enumerate([*EVAL, *TRAIN]):
        x, y = 3 + 5 * (number % 5), 2 + 4 * (number % 4)
        write_scene(folder, name, [(("disc", "ring")[number % 2], (x, y, x + 15, y + 11))])
    for number in range(3):
        write_scene(folder, f"two{number}", [("disc", (1, 1, 20, 30 - number)), ("ring", (28, 10, 48, 40))])
    (folder / "eval.txt").write_text("\n".join([*EVAL, "two0"]))
    (folder / "train.txt").write_text("\n".join([*TRAIN, "two1", "two2", EVAL[0]]))  # the lists overlap
    (folder / "disc_network.py").write_text(
        "import torch\n"
        "from torchvision.transforms import v2\n"
        "from tests.networks import ToyCNN\n"
        "resize = v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])\n"
        "def make(): return ToyCNN(), lambda image: 4 * resize(image) - 2\n"
        "def named(): return *make(), {0: 'disc', 1: 'disc', 2: 'ring', 3: 'disc', 4: 'disc'}\n"
    )
    return folder


@pytest.fixture
def network(somewhere, monkeypatch):
    monkeypatch.chdir(somewhere)
    monkeypatch.setattr("bench.multilabel.MOST_EPOCHS", EPOCHS)
    return Network(**vars(find_network("disc_network:make")))


def run(folder, name, recipe, *arguments):
    ids = "train.txt" if name == "class_discrimination" else "eval.txt"
    file = folder / import_module(f"paper_{name}").EXPERIMENT.file_name(recipe)
    given = ["--data", str(folder), "--ids", str(folder / ids), "--json", str(file), "--recipe", recipe]
    given += ["--network", "disc_network:make", "--batch-size", "2"]
    given += ["--train", str(folder / "train.txt")] if name in NEEDS_TRAIN else []
    given += ["--layers", "fine", "coarse"] if name == "base_layers" else []
    import_module(f"paper_{name}").main([*given, *arguments])
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def reports(somewhere):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(somewhere)
        patch.setattr("bench.multilabel.MOST_EPOCHS", EPOCHS)
        return {name: run(somewhere, name, "default") for name in SCRIPTS}


@pytest.fixture(scope="module")
def reports_of_paper(somewhere):
    """With the paper's recipe, which is slow, on the first two images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(somewhere)
        patch.setattr("bench.multilabel.MOST_EPOCHS", EPOCHS)
        tuning = {"base_layers": ["--tune-limit", "2"]}
        return {name: run(somewhere, name, "paper", "--limit", "2", *tuning.get(name, [])) for name in SCRIPTS}


OTHERS = {"centre", "Grad-CAM", "Grad-CAM, before", "Grad-CAM, after"}  # rows that know nothing of a recipe


def rows(name, recipe):
    return {
        "pointing_game": [f"GFI, {recipe}", "Grad-CAM", "centre"],
        "class_discrimination": [f"GFI, {recipe}", f"GFI, {recipe}, rather than the other", "Grad-CAM"],
        "base_layers": ["fine", "coarse", *["the default's two layers"] * (recipe == "default")],
        "adversarial": [
            f"{method}, {when}{which}"
            for method in (f"GFI, {recipe}", f"GFI, {recipe}, of the logit", "Grad-CAM")
            for when in ("before", "after")
            for which in ("", ", fooled")
        ],
        "stages": ["stage 1", "stage 2", "centre"],
        "backgrounds": ["blur", "mean", "noise"],
    }[name]


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_measures_all_its_rows(reports, reports_of_paper, name, recipe):
    report = {"default": reports, "paper": reports_of_paper}[recipe][name]
    figures = report["tables"][""]
    assert list(figures) == rows(name, recipe)
    images = ["two1", "two2"] if name == "class_discrimination" else EVAL
    assert report["images"] == (images if recipe == "default" else images[:2])
    for row, cells in report["values"].items():
        for column, series in cells.items():
            assert len(series) == len(report["images"]), (row, column)
            measured = [value for value in series if value is not None]
            figure = figures[row].get(column)
            if figure is not None:
                assert figure["value"] == pytest.approx(np.mean(measured), abs=1e-5), (row, column)
                assert figure["images"] == len(measured)
                assert figure["low"] <= figure["value"] <= figure["high"]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "pointing_game"])
def test_the_recipe_is_the_one_that_was_asked_for(reports, reports_of_paper, name):
    """By what was measured, and not by what the report says of itself."""
    default, paper = reports[name], reports_of_paper[name]
    assert [one["recipe"]["target_steps"] for one in (default, paper)] == [3, 70]
    column = "own share" if name == "class_discrimination" else "energy in the box"
    pairs = zip(rows(name, "default"), rows(name, "paper"), strict=name != "base_layers")
    own = [pair for pair in pairs if pair[0] not in OTHERS and not pair[0].endswith("fooled")]
    assert own
    for row, row_of_paper in own:
        with_default, with_paper = default["values"][row][column][:2], paper["values"][row_of_paper][column]
        assert with_paper != pytest.approx(with_default, abs=1e-3), row


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_the_pointing_game_explains_by_the_recipe(network, somewhere, recipe):
    cases = experiments.right_cases(network, somewhere, EVAL, 2)
    (batch,) = batches(cases, network, 2)
    found = explainers(network, batch, recipe)[f"GFI, {recipe}"](network.model, batch.images, batch.targets)
    expected = GuidedFeatureInversion(network.model, recipe=recipe).explain(batch.images, batch.targets).heatmaps
    assert torch.equal(found, expected)


def test_hits_are_counted_by_class(reports):
    hits = reports["pointing_game"]["tables"]["Hits by class"]
    assert {row: cells["centre"].split(" of ")[1] for row, cells in hits.items()} == {"disc": "3", "ring": "2"}


def test_nothing_is_tuned_or_trained_on_what_is_reported(reports):
    assert "trained on 10 photographs" in reports["pointing_game"]["remarks"][0]
    assert "trained on 9 photographs" in reports["class_discrimination"]["remarks"][0]
    assert reports["base_layers"]["remarks"] == ["α was tuned on 8 images of train.txt."]


def test_maps_of_the_default_recipe_are_the_same_in_every_experiment(reports):
    """Three routes to one figure."""
    energy = "energy in the box"
    routes = [
        reports["base_layers"]["values"]["the default's two layers"],
        reports["adversarial"]["values"]["GFI, default, before"],
        reports["stages"]["values"]["stage 2"],
        reports["backgrounds"]["values"]["blur"],
    ]
    for route in routes[1:]:
        assert route[energy] == pytest.approx(routes[0][energy], abs=1e-3)


def test_the_page_joins_all_sections(somewhere, reports, reports_of_paper):
    paper_page.main([str(somewhere / "page.md"), "--results", str(somewhere)])
    page = (somewhere / "page.md").read_text()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings == [f"## {experiment.title}" for experiment in paper_page.EXPERIMENTS]
    (somewhere / "page.md").write_text(page.replace("# The paper's experiments", "# By hand", 1).replace("0.547", "?"))
    paper_page.main([str(somewhere / "page.md"), "--results", str(somewhere)])
    again = (somewhere / "page.md").read_text()
    assert again == page.replace("# The paper's experiments", "# By hand", 1)
    assert str(somewhere.parent) not in page + json.dumps(reports)
    assert "0.547 |" in page  # the paper's
    titles = {experiment.name: experiment.title for experiment in paper_page.EXPERIMENTS}
    for name in SCRIPTS:
        (section,) = [part for part in page.split("\n## ") if part.startswith(titles[name])]
        halves = section.split("### With the paper's own recipe")
        for half, report in zip(halves, (reports[name], reports_of_paper[name]), strict=True):
            row, cells = next(iter(report["tables"][""].items()))
            first = next(cell for cell in cells.values() if not isinstance(cell, str))
            line = next(line for line in half.splitlines() if line.startswith(f"| {row} "))
            assert f"{first['value']:.3f} ({first['low']:.3f} … {first['high']:.3f})" in line
            assert (f"Less {report['reference']}, paired" in half) == (name != "adversarial")
    assert reports_of_paper["base_layers"]["reference"] == "coarse"


def test_only_right_predictions_are_taken_where_names_are_known(somewhere, network, monkeypatch):
    everything = experiments.right_cases(network, somewhere, EVAL, 5)
    assert [case.photograph.id for case in everything] == EVAL
    assert len(experiments.right_cases(network, somewhere, EVAL, 2)) == 2
    named = find_network("disc_network:named")
    right = [case.photograph.id for case in everything if named.class_names[case.target] == case.photograph.classes[0]]
    assert [case.photograph.id for case in experiments.right_cases(named, somewhere, EVAL, 5)] == right
    with pytest.raises(UsageError, match="no image"):
        experiments.right_cases(network, somewhere, ["two0"], 5)


def test_the_batches_of_a_row_are_joined():
    parts = [torch.tensor([1, 2]), torch.tensor([5])]
    values = experiments.over_batches(parts, lambda part: {"a": {"x": part, "half": part / 2}})
    assert values["a"]["x"].tolist() == [1, 2, 5]
    assert values["a"]["half"].tolist() == [0.5, 1, 2.5]
    assert experiments.estimates({"a": {"x": np.array([1, np.nan, 5])}})["a"]["x"].images == 2


def test_differences_are_paired_image_by_image():
    values = {"a": {"x": [1.0, 2.0, None], "y": [1.0, 1.0, 1.0]}, "b": {"x": [0.0, 3.5, 1.0], "z": [0.0, 0.0, 0.0]}}
    found = experiments.differences(values, "a")
    assert list(found) == ["b"]
    assert list(found["b"]) == ["x"]
    assert (found["b"]["x"].value, found["b"]["x"].images) == ((-1 + 1.5) / 2, 2)


def test_the_mean_over_classes_counts_rare_classes_as_much_as_common_ones():
    values, classes = np.array([1.0, 0, 1, 1, np.nan, 0]), np.array([0, 0, 0, 2, 2, 3])
    found = mean_over_classes(values, classes)
    assert found.value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.images == 5
    values, classes, means = values[[0, 1, 2, 3, 5]], classes[[0, 1, 2, 3, 5]], []
    for rows in np.random.default_rng(0).integers(5, size=(RESAMPLES, 5)):
        drawn = {c: [values[row] for row in rows if classes[row] == c] for c in classes}
        means.append(np.mean([np.mean(series) for series in drawn.values() if series]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_a_map_for_both_classes_discriminates_nothing():
    generator = torch.Generator().manual_seed(0)
    regions = torch.zeros(3, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, :5, :5], regions[:, 1, 3:, 2:] = True, True
    same = torch.rand(3, 1, 8, 8, generator=generator).expand(-1, 2, -1, -1)
    assert discrimination(same, regions)["own share"].tolist() == pytest.approx([0.5] * 3)
    assert discrimination(same, regions)["similarity of the two maps"].tolist() == pytest.approx([1] * 3)
    assert discrimination(torch.zeros_like(same), regions)["own share"].tolist() == [0.5] * 3
    perfect = discrimination(regions.float(), regions)
    assert perfect["own share"].tolist() == [1] * 3
    assert (perfect["own hit"].tolist(), perfect["other hit"].tolist()) == ([1] * 3, [0] * 3)


def test_shares_and_hits_of_two_maps_as_a_slow_loop_finds_them():
    generator = torch.Generator().manual_seed(1)
    regions = torch.zeros(4, 2, 8, 8, dtype=torch.bool)
    regions[:, 0, :5, :5], regions[:, 1, 3:, 2:] = True, True
    maps = torch.rand(4, 2, 8, 8, generator=generator)
    found = discrimination(maps, regions)
    for image in range(4):
        shares, own_hits, other_hits = [], [], []
        for which in range(2):
            own, other = regions[image, which], regions[image, 1 - which]
            on_own = sum(float(maps[image, which, y, x]) for y, x in (own & ~other).nonzero().tolist())
            on_other = sum(float(maps[image, which, y, x]) for y, x in (other & ~own).nonzero().tolist())
            shares.append(on_own / (on_own + on_other))
            y, x = divmod(int(maps[image, which].argmax()), 8)
            own_hits.append(float(own[y, x]))
            other_hits.append(float(other[y, x] and not own[y, x]))
        assert float(found["own share"][image]) == pytest.approx(np.mean(shares), abs=1e-5)
        assert float(found["own hit"][image]) == np.mean(own_hits)
        assert float(found["other hit"][image]) == np.mean(other_hits)


@pytest.mark.parametrize(
    ("boxes", "apart"),
    [
        ({"horse": (0, 0, 60, 60), "person": (50, 50, 100, 100)}, True),
        ({"horse": (0, 0, 60, 60), "person": (10, 10, 40, 40)}, False),  # the rider within the horse's box
        ({"horse": (0, 0, 60, 60)}, False),
        ({"horse": (0, 0, 60, 60), "person": (50, 50, 100, 100), "dog": (0, 90, 9, 100)}, False),
    ],
)
def test_photographs_of_two_classes_that_lie_apart(tmp_path, boxes, apart):
    photograph = Photograph("x", tmp_path, (100, 100), tuple(Object(*pair) for pair in boxes.items()))
    assert is_apart(photograph) is apart
    assert regions_of(photograph, (50, 50)).shape == (len(boxes), 50, 50)


def test_the_attack_is_a_step_against_the_cross_entropy(network, somewhere):
    photographs = read_photographs(somewhere, EVAL)
    images, targets = stack_images(photographs, network.preprocess), torch.tensor([0, 1, 2, 3, 4])
    attacked = fast_gradient_sign(network, images, targets, epsilon=8)
    images.requires_grad_()
    loss = torch.nn.functional.cross_entropy(network.model(images), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    black, white = bounds(network.preprocess)
    assert (black.unique().tolist(), white.unique().tolist()) == ([-2], [2])
    expected = (images.detach() + 8 / 255 * 4 * gradient.sign()).clamp(-2, 2)
    large = gradient.abs() > 1e-6  # the sign of rounding is anybody's
    assert large.float().mean() > 0.5
    assert torch.allclose(attacked[large], expected[large], atol=1e-6)
    assert torch.equal(fast_gradient_sign(network, images, targets, epsilon=0), images.detach())


def test_only_a_new_last_layer_is_trained(network, somewhere):
    photographs = read_photographs(somewhere, [*TRAIN, "two1"])
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    retrained = retrain_last_layer(network, photographs)
    assert retrained.network.class_names == {0: "disc", 1: "ring"}
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())
    after = retrained.network.model.state_dict()
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} == {
        "head.3.weight",
        "head.3.bias",
    }
    again = retrain_last_layer(network, photographs)
    assert again.epochs == retrained.epochs
    assert torch.equal(again.network.model.head[3].weight, retrained.network.model.head[3].weight)


def test_the_last_layer_is_trained_as_an_obvious_loop_does(network, somewhere):
    photographs = read_photographs(somewhere, [*TRAIN, "two1"])
    retrained = retrain_last_layer(network, photographs)
    with torch.no_grad():
        features = network.model.head[:3](
            network.model.coarse(network.model.pool(network.model.fine(stack_images(photographs, network.preprocess))))
        )
    labels = torch.tensor([[float("disc" in p.classes), float("ring" in p.classes)] for p in photographs])
    torch.manual_seed(0)
    head = torch.nn.Linear(features.shape[1], 2)
    optimizer = torch.optim.Adam(head.parameters(), LEARNING_RATE)
    for _ in range(retrained.epochs):  # nine photographs are one batch
        optimizer.zero_grad()
        torch.nn.BCEWithLogitsLoss()(head(features), labels).backward()
        optimizer.step()
    assert torch.allclose(retrained.network.model.head[3].weight, head.weight, atol=1e-5)


def test_a_network_without_a_linear_layer_cannot_be_trained_anew(network, somewhere):
    convolution = Network(torch.nn.Conv2d(3, 5, 3), network.preprocess)
    with pytest.raises(UsageError, match="Conv2d has no linear layer"):
        retrain_last_layer(convolution, read_photographs(somewhere, TRAIN))


@pytest.mark.usefixtures("reports", "reports_of_paper")
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_the_page_takes_sections_of_one_recipe_alone(somewhere, tmp_path, recipe):
    for experiment in paper_page.EXPERIMENTS:
        for one in ("default", "paper"):
            report = json.loads((somewhere / experiment.file_name(one)).read_text())
            if (experiment.name, one) == (SCRIPTS[-1], recipe):
                report["recipe"]["target_steps"] += 1
            (tmp_path / experiment.file_name(one)).write_text(json.dumps(report))
    with pytest.raises(UsageError, match=f"is of another {recipe} recipe"):
        paper_page.main([str(tmp_path / "page.md"), "--results", str(tmp_path)])
