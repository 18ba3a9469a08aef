"""Pictures show what they say, at a size that can be read."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import ImageDraw

from gfi_lightning.recording.pictures import COLOR_MAP, draw_overview, draw_sample, enlarged, overlay, rgb
from gfi_lightning.recording.record import DepthRecord, Record, SampleRecord, TargetRecord

NAMES = ["ant", "a class with a name that goes on and on and would not fit below any picture", "猫"]


def target(index=0, degenerate=False, size=(16, 16)):
    return TargetRecord(index, torch.rand(size), 0.25, 0.5, 0.125, degenerate)


def sample(size=(3, 16, 16), label=0, predicted=1, targets=2):
    maps = [target(index, size=size[1:]) for index in range(targets)]
    return SampleRecord(torch.rand(size), label, predicted, 0.75, torch.rand(size[1:]), maps)


@pytest.mark.parametrize(
    "size", [(3, 16, 16), (1, 28, 28), (4, 32, 32), (2, 20, 30), (3, 190, 9), (3, 224, 224), (3, 600, 900)]
)
def test_sizes_that_can_be_read(size):
    picture = enlarged(torch.rand(size))
    assert 192 <= max(picture.size) < 384
    assert picture.width / picture.height == pytest.approx(size[2] / size[1], rel=0.01)
    pixels = draw_sample(sample(size), 0, 0)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert pixels.shape[1] > 2 * picture.width


def test_a_small_image_is_enlarged_by_a_whole_factor():
    assert enlarged(torch.rand(3, 48, 32)).size == (192, 288)


@pytest.mark.parametrize("side", [192, 224, 256, 299, 341])
def test_an_image_of_about_the_size_of_a_panel_stays_as_it_is(side):
    image = torch.rand(3, side, 100)
    assert np.array_equal(np.asarray(enlarged(image)), rgb(image))
    assert np.array_equal(np.asarray(enlarged(image[:, :, :50], side)), rgb(image[:, :, :50]))


def test_a_large_image_is_shrunk_to_four_thirds():
    assert enlarged(torch.rand(3, 480, 960)).size == (341, 171)
    assert enlarged(torch.rand(3, 224, 224), 144).size == (192, 192)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_channels(channels):
    image = torch.rand(channels, 4, 4)
    pixels = rgb(image)
    expected = image[:3] if channels >= 3 else image[:1].expand(3, 4, 4)
    np.testing.assert_allclose(pixels / 255, expected.permute(1, 2, 0), atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_the_overlay_is_the_colour_map_over_grey(value):
    pixels = np.asarray(overlay(torch.full((3, 8, 8), 0.5), torch.full((8, 8), value)), dtype=float)
    expected = 0.4 * 128 + 0.6 * 255 * np.array(matplotlib.colormaps[COLOR_MAP](value)[:3])
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1)


def test_the_overlay_of_every_grey_and_every_value():
    """By Matplotlib's own colours, of floating point numbers."""
    grey, heat = torch.meshgrid(torch.arange(256) / 255, torch.arange(256) / 255, indexing="ij")
    pixels = np.asarray(overlay(grey[None], heat))
    shown = (grey * 255).round().numpy()[..., None]
    expected = 0.4 * shown + 0.6 * 255 * matplotlib.colormaps[COLOR_MAP](heat.numpy())[..., :3]
    np.testing.assert_allclose(pixels, expected, atol=0.5001)


def test_the_overlay_lies_where_the_map_lies():
    heatmap = torch.zeros(16, 16)
    heatmap[:8, 8:] = 1  # above, right
    pixels = np.asarray(overlay(torch.zeros(3, 16, 16), heatmap), dtype=float).sum(2)
    half = pixels.shape[0] // 2
    quarters = [pixels[:half, :half], pixels[:half, half:], pixels[half:, :half], pixels[half:, half:]]
    assert np.argmax([quarter.mean() for quarter in quarters]) == 1


def test_the_plain_image_stands_beside_its_overlays():
    shown = sample(size=(3, 256, 256))
    pixels = draw_sample(shown, 0, 0)
    plain = rgb(shown.image)
    # Somewhere in the picture the image stands as it is.
    corner = np.argwhere((pixels[:60, :60] == plain[0, 0]).all(2))
    assert any((pixels[y : y + 256, x : x + 256] == plain).all() for y, x in corner)


@pytest.fixture
def drawn(monkeypatch):
    """Every text that is drawn, with its font and place."""
    texts, draw = {}, ImageDraw.ImageDraw.text

    def text(self, position, text, *arguments, **options):
        texts[text] = position, options["font"]
        return draw(self, position, text, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


ANIMALS = ["cat", "dog", "a class with a name that goes on and on and would not fit below any picture"]


@pytest.mark.parametrize(
    ("against", "label", "expected"),
    [
        (1, 0, ["stage 2: cat rather than dog", "the label, not the prediction", "p 0.25 of the two"]),
        (2, 1, ["stage 2: cat", "rather than a class with a name", "p 0.25 of the two"]),
    ],
)
def test_a_contrast_says_both_classes(drawn, against, label, expected):
    shown = sample(size=(3, 16, 16), label=label, predicted=1, targets=1)
    shown = replace(shown, targets=[replace(shown.targets[0], against=against)])
    draw_sample(shown, 0, 0, ANIMALS)
    for start in expected:
        assert any(text.startswith(start) for text in drawn), start
    drawn.clear()
    draw_overview(Record(5, (4, 4), [shown]), ANIMALS)
    assert {"sample 0", "any class", "cat", "kept 0.50"} <= drawn.keys(), (
        "the panels are too narrow for both in one line"
    )
    (position, _) = next(place for text, place in drawn.items() if text.startswith("rather than"))
    assert drawn["cat"][0][1] < position[1] < drawn["kept 0.50"][0][1]
    assert all(position[0] + font.getlength(text) < 230 for text, (position, font) in drawn.items())


def test_the_prediction_is_contrasted_with_the_runner_up(drawn):
    shown = sample(label=0, predicted=0, targets=1)
    draw_sample(replace(shown, targets=[replace(shown.targets[0], against=1)]), 0, 0, ANIMALS)
    assert {"the prediction, not the runner-up", "predicted ✓: cat"} <= drawn.keys()


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ((0, 1), {"labels: cat, dog", "predicted ✓: dog", "a label", "a label and the prediction"}),
        ((0,), {"labels: cat", "predicted ✗: dog", "a label", "the prediction"}),
        ((), {"labels: none", "predicted: dog", "as asked for", "no label present: the prediction"}),
    ],
)
def test_present_classes(drawn, present, expected):
    draw_sample(replace(sample(label=None, predicted=1, targets=2), present=present), 0, 0, ANIMALS)
    assert expected <= drawn.keys()


def with_depths(shown, count):
    layers = [f"model.backbone.layer{number}.conv" for number in range(count)]
    grids = [(2 ** (5 - number), 2 ** (5 - number)) for number in range(count)]
    depths = [DepthRecord(layer, grid, torch.full((16, 16), 0.5)) for layer, grid in zip(layers, grids, strict=True)]
    return replace(shown, depths=depths)


@pytest.mark.parametrize(("count", "columns"), [(1, 2), (2, 2), (3, 3), (4, 4), (5, 3)])
def test_what_each_depth_still_sees(drawn, count, columns):
    plain = sample(targets=1)
    above = draw_sample(plain, 0, 0, NAMES)
    pixels = draw_sample(with_depths(plain, count), 0, 0, NAMES)
    assert "what each depth still sees" in drawn
    assert pixels.shape[1] == above.shape[1]
    np.testing.assert_array_equal(pixels[: len(above)], above)
    side = (pixels.shape[1] - 14 * (columns + 1)) // columns
    resolutions = [f"{2 ** (5 - number)} × {2 ** (5 - number)}" for number in range(count)]
    places = [drawn[text][0] for text in resolutions]
    assert places == sorted(places, key=lambda place: (place[1], place[0])), "in the order in which they were given"
    assert [place[0] for place in places] == [14 + number % columns * (side + 14) for number in range(count)]
    assert len({place[1] for place in places}) == -(-count // columns)
    endings = [text for text in drawn if text.endswith(".conv")]
    assert len(endings) == count
    assert all(drawn[text][1].getlength(text) <= side for text in endings)


def test_a_row_of_depths_below_a_narrow_picture(drawn):
    pixels = draw_sample(with_depths(sample(size=(3, 64, 16), targets=1), 2), 0, 0)
    assert pixels.shape[0] > pixels.shape[1]


def test_captions_change_the_picture():
    shown = sample(targets=1)
    pictures = {
        "as is": draw_sample(shown, 0, 0, NAMES),
        "other step": draw_sample(shown, 0, 7, NAMES),
        "other names": draw_sample(shown, 0, 0, ["cow", "dog", "elk"]),
        "no names": draw_sample(shown, 0, 0),
    }
    distinct = {picture.tobytes() for picture in pictures.values()}
    assert len(distinct) == len(pictures)


def test_nothing_known_about_a_sample():
    unknown = SampleRecord(torch.rand(3, 16, 16), None, None, None, torch.rand(16, 16), [target(12, degenerate=True)])
    assert draw_sample(unknown, 3, 10, NAMES).size > 0


@pytest.mark.parametrize("count", [1, 8, 11])
def test_the_overview_has_all_samples_in_rows_of_eight(count):
    record = Record(5, (4, 4), [sample(targets=1 + number % 2) for number in range(count)])
    pixels = draw_overview(record, NAMES)
    assert pixels.shape[1] < 1500
    one = draw_overview(Record(5, (4, 4), record.samples[:1]), NAMES)
    assert pixels.shape[1] - one.shape[1] == (min(count, 8) - 1) * (144 + 14)  # a column and its margin
    assert (pixels.shape[0] > one.shape[0]) == (count > 1)
