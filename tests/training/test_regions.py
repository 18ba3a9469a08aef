"""Where something is known to lie: what may be given, what the curves say, and when the alarm is set off."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.tv_tensors import BoundingBoxes, Mask

from gfi_lightning import GFICallback, History, UsageError
from gfi_lightning.metrics import energy_in_region, pointing_hits
from gfi_lightning.training.regions import alarms, as_masks, parts_of_items, parts_of_samples
from tests.training.modules import (
    WEIGHTS_ONLY,
    Pictures,
    ToyModule,
    loaders,
    make_trainer,
    quick_callback,
    scalar_steps,
)

SIZE = (16, 16)
TOP, LEFT = torch.zeros(SIZE, dtype=torch.bool), torch.zeros(SIZE, dtype=torch.bool)
TOP[:8], LEFT[:, :4] = True, True


@pytest.mark.parametrize(
    "parts",
    [
        [TOP, LEFT, None],
        torch.stack([TOP, LEFT, torch.zeros_like(TOP)]),
        torch.stack([TOP, LEFT, torch.zeros_like(TOP)]).int().numpy(),
        [(0, 0, 16, 8), [0, 0, 4, 16], None],
        [[[0, 0, 16, 4], [0, 4, 16, 8]], torch.tensor([[0.0, 0, 4, 16]]), []],
        [torch.tensor([[0, 0, 16, 8]]).numpy(), LEFT.numpy(), torch.empty(0, 4)],
        [[[0, 0, 16, 8]], LEFT.tolist(), None],
        [BoundingBoxes([[0, 0, 16, 8]], format="XYWH", canvas_size=SIZE), Image.fromarray(LEFT.numpy()), None],
        [BoundingBoxes([[8, 4, 16, 8]], format="CXCYWH", canvas_size=SIZE), LEFT[None], None],
        [TOP * 255, LEFT.float(), None],
        [torch.stack([TOP & LEFT, TOP & ~LEFT]), Mask(LEFT[None].int()), None],
    ],
)
def test_forms(parts):
    masks = as_masks(parts_of_samples({"part": parts}, None, None), 3, SIZE)["part"]
    assert torch.equal(masks, torch.stack([TOP, LEFT, torch.zeros_like(TOP)]))


def test_a_mask_of_pixels_may_fill_the_image():
    full = np.full(SIZE, 255, np.uint8)
    masks = as_masks({"part": [full, 0 * full]}, 2, SIZE)["part"]
    assert masks.flatten(1).all(1).tolist() == [True, False]


def test_of_parts_for_the_whole_data_set_those_of_the_samples_are_taken():
    boxes = [[number, 0, number + 1, 1] for number in range(10)]
    assert parts_of_samples({"part": boxes}, [7, 2], 10) == {"part": [boxes[7], boxes[2]]}
    assert parts_of_samples({"part": boxes[:2]}, [7, 2], 10) == {"part": boxes[:2]}


def test_a_function_of_the_item():
    items = [("image", {"cat": [0, 0, 1, 1]}), ("image", {}), ("image", {"dog": [0, 0, 2, 2]})]
    parts = parts_of_items(lambda item: item[1], items)
    assert parts == {"cat": [[0, 0, 1, 1], None, None], "dog": [None, None, [0, 0, 2, 2]]}
    with pytest.raises(UsageError, match=r"regions= returned str; expected is a mapping"):
        parts_of_items(lambda item: item[0], items)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([None], r"regions\['part'\] has 1 entries, and there are 2 samples"),
        ([None, torch.ones(8, 8, dtype=torch.bool)], r"\['part'\]\[1\] is a mask of 8 × 8, and the images are 16 × 16"),
        ([[1, 2, 3], None], r"\['part'\]\[0\] is Tensor\(3,\).*expected is for each sample a box"),
        ([[4, 4, 2, 8], None], r"\['part'\]\[0\]: .*x0"),
        ([None, "here"], r"\['part'\]\[1\] is str"),
        ([None, torch.full(SIZE, 2)], r"\['part'\]\[1\] is Tensor\(16, 16\).* of 2, and no mask: give True and"),
        (
            [None, torch.linspace(0, 0.9, 256).reshape(SIZE)],
            r"\['part'\]\[1\] is Tensor.* of values from 0.* and no mask",
        ),
        ([None, torch.ones(48, 48, dtype=torch.uint8)], r"is a mask of 48 × 48, and the images are 16 × 16"),
        (
            [[0.1, 0.1, 0.4, 0.4], None],
            r"\['part'\]\[0\] is \[0.1, .* shares of the image's size: give pixels, .* 16 × 16",
        ),
    ],
)
def test_what_is_no_region(parts, message):
    with pytest.raises(UsageError, match=message):
        as_masks({"part": parts}, 2, SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": [1, 2]}, r"regions=list.* cannot be used: give a mapping"),
        ({"regions": {"a/b": []}}, r"region 'a/b' needs a name .* without '/'"),
        ({"regions": {3: []}}, r"region 3 needs a name"),
        ({"regions": {"part": 7}}, r"regions\['part'\] is int.*expected is for each sample"),
        (
            {"regions": dict, "samples": (torch.rand(1, 3, 8, 8), torch.tensor([0]))},
            r"samples= is a ready batch: give a",
        ),
        ({"alarm": 0.3}, r"alarm=0.3 must be a mapping"),
        ({"alarm": {"part": 0.3}}, r"alarm={'part': 0.3} needs regions="),
        ({"alarm": {"part": 30}, "regions": {"part": []}}, r"alarm\['part'\]=30 must be a share"),
        ({"alarm": {"patch": 0.3}, "regions": {"part": []}}, r"watches 'patch', but regions= has 'part'"),
        ({"prog_bar": ["energy/patch"], "regions": {"part": []}}, r"prog_bar=.* watches 'patch', but .* has 'part'"),
        ({"prog_bar": ["drift", "pointing/patch/ant"]}, r"prog_bar=.* watches 'patch', but regions= has none"),
    ],
)
def test_misuse_is_told_in_the_constructor(options, message):
    with pytest.raises(UsageError, match=message):
        GFICallback(**options)


def fit(folder, callback, **options):
    trainer = make_trainer(folder, callback, **options)
    trainer.fit(ToyModule(), **loaders())
    return trainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": {"part": [None, None]}}, r"regions\['part'\] has 2 entries, and there are 3 samples"),
        ({"regions": lambda item: {}, "alarm": {"patch": 0.3}}, r"alarm=.* watches 'patch', but regions= has none"),
        ({"regions": lambda item: {"part": [9, 9, 1, 1]}}, r"regions\['part'\]\[0\]"),
    ],
)
def test_misuse_is_told_before_the_first_step(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        fit(tmp_path, quick_callback(**options))


@pytest.mark.parametrize("form", ["function", "of the samples", "of the data set"])
def test_energy_and_pointing_are_curves(tmp_path, form):
    of_items = [[0, 0, 16, 8] if number % 8 == 4 else None for number in range(20)]
    regions = {
        "function": lambda item: {"object": [0, 0, 16, 8] if item[1] == 1 else None},
        "of the samples": {"object": [None, [0, 0, 16, 8], None]},
        "of the data set": {"object": of_items},
    }[form]
    trainer = fit(tmp_path, quick_callback(samples=[0, 4, 8], regions=regions))
    history = History.load(trainer.log_dir)
    assert [history.regions["object"][number].any() for number in range(3)] == [False, True, False]
    assert history.curve("energy/object").shape == (3, 3)
    assert scalar_steps(trainer, "gfi/energy/object") == scalar_steps(trainer, "gfi/pointing/object") == [0, 3, 7]
    assert Pictures().targets[4] == 1


def test_the_energy_is_that_of_the_whole_map(tmp_path):
    """Against the metric itself on an explanation of our own."""
    from gfi_lightning import GuidedFeatureInversion
    from tests.training.modules import QUICK

    module = ToyModule()
    trainer = make_trainer(tmp_path, quick_callback(samples=[4], regions={"part": [[1, 2, 9, 11]]}), max_epochs=1)
    trainer.fit(module, **loaders())
    heatmaps = GuidedFeatureInversion(module, recipe=QUICK).explain(Pictures().images[[4]], torch.tensor([1])).heatmaps
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 2:11, 1:9] = True
    history = History.load(trainer.log_dir)
    assert history.curve("energy/part")[-1, 0] == pytest.approx(float(energy_in_region(heatmaps, mask)), abs=1e-4)
    assert history.curve("pointing/part")[-1, 0] == float(pointing_hits(heatmaps, mask))


def test_the_alarm_is_set_off_once_and_names_step_and_samples(tmp_path):
    everywhere = {"frame": [[0, 0, 16, 16]] * 3, "corner": [[0, 0, 1, 1]] * 3}
    callback = quick_callback(regions=everywhere, alarm={"frame": 0.5, "corner": 0.9})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, callback, max_epochs=3)
    told = [str(one.message) for one in caught if "energy in the region" in str(one.message)]
    assert len(told) == 1, "for all runs together, and not for the untrained model"
    expected = (
        r"at step 3 the maps of 3 of 3 samples have more than 0\.5 of their energy in the region 'frame': "
        r"samples 0, 1, 2\. The mean is 1\.00\. .* gfi/film_0 and the curve gfi/energy/frame\."
    )
    assert re.search(expected, told[0]), json.dumps(told)


def test_the_alarm_is_not_set_off_again_by_a_resume(tmp_path):
    told = []
    for epochs in (1, 3):
        callback = quick_callback(regions={"frame": [[0, 0, 16, 16]] * 3}, alarm={"frame": np.float32(0.5)})
        trainer, path = make_trainer(tmp_path, callback, max_epochs=epochs), tmp_path / "before.ckpt"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(ToyModule(), **loaders(), ckpt_path=path if path.exists() else None, **WEIGHTS_ONLY)
        trainer.save_checkpoint(path)
        told.append(sum("energy in the region" in str(one.message) for one in caught))
    assert told == [1, 0]


@pytest.mark.filterwarnings("default:.*GFICallback.*")
def test_a_region_that_is_nowhere_is_told(tmp_path):
    with pytest.warns(UserWarning, match="the region 'frame' lies in none of the samples: it has no curves, no alarm"):
        fit(tmp_path, quick_callback(regions={"frame": [None] * 3}, alarm={"frame": 0.5}), max_epochs=1)


def test_who_sets_off_the_alarm():
    curves = {"energy/a": torch.tensor([0.2, torch.nan, 0.31, 0.3]), "energy/b": torch.tensor([0.1, 0.1, 0.1, 0.1])}
    ((name, message),) = alarms({"a": 0.3, "b": 0.3}, curves, 7, "gfi/2", "film")
    assert name == "a"
    assert "at step 7 the maps of 1 of 3 samples" in message
    assert "'a': sample 2. The mean is 0.27." in message
    assert "gfi/2/film_2 and the curve gfi/2/energy/a" in message
