"""The film shows what was seen, at the steps that it says, and no frame of a run that is no more."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageSequence

from gfi_lightning import History, UsageError
from gfi_lightning.recording import film as film_module
from gfi_lightning.recording.arrays import run_array, sample_arrays
from gfi_lightning.recording.encoding import encoded
from gfi_lightning.recording.film import Film, animation, film_strip, sample_strip, spread
from gfi_lightning.recording.frames import NOTHING
from gfi_lightning.recording.loggers.tensorboard import log_pictures
from gfi_lightning.recording.pictures import overlay
from gfi_lightning.recording.record import Record, SampleRecord, TargetRecord
from tests.browser import chromium, find_all, tensorboard, wait_for

SIDE = 100  # as large as a frame: nothing is resized
EPOCHS = [94 * epoch for epoch in range(31)]
LOG_SCHEDULE = [0, *(2**power for power in range(1, 13)), *(5000 * epoch for epoch in range(1, 91))]


def record(step, samples=2, size=(SIDE, SIDE), seed=None, predicted=0, label=0, target=0, against=None):
    """Maps that differ between all steps and samples."""
    images = torch.Generator().manual_seed(0)
    maps = torch.Generator().manual_seed(step if seed is None else seed)

    def sample():
        heatmap = torch.rand(8, 8, generator=maps)
        one = TargetRecord(target, heatmap, 0.5, 0.75, 0.25, False, against)
        return SampleRecord(torch.rand(3, *size, generator=images), label, predicted, 0.5, heatmap, [one])

    return Record(step, (8, 8), [sample() for _ in range(samples)])


def run(step, **options):
    return run_array(record(step, **options), {})


def history(steps, **options):
    arrays = sample_arrays(record(0, **options), ["ant", "bee", "crow"])
    return History("film", arrays, [run(step, **options) for step in steps])


def expected_frame(of, sample, number):
    """The overlay of a run's map."""
    image = torch.from_numpy(of.images[sample]).permute(2, 0, 1) / 255
    return np.asarray(overlay(image, torch.from_numpy(of.heatmaps(sample)[number, 0]), SIDE))


def places(pixels, picture):
    """Where a picture lies in another one: (top, left) of each place, in reading order."""
    height, width = picture.shape[:2]
    first = (pixels[: len(pixels) - height + 1, : pixels.shape[1] - width + 1] == picture[0, 0]).all(2)
    return [
        (top, left)
        for top, left in np.argwhere(first).tolist()
        if np.array_equal(pixels[top : top + height, left : left + width], picture)
    ]


def shown_runs(pixels, of, sample):
    """The runs whose frames are seen, in reading order."""
    there = [number for number, maps in enumerate(of.heatmaps(sample)) if np.isfinite(maps[0]).all()]
    found = [(place, number) for number in there for place in places(pixels, expected_frame(of, sample, number))]
    return [number for _, number in sorted(found)]


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 11, 12, 13, 14, 31, 40, 103, 1000, 12345])
@pytest.mark.parametrize("most", [2, 3, 10, 12, 60])
def test_spread(count, most):
    chosen = spread(count, most)
    assert chosen[0] == 0
    assert chosen[-1] == count - 1
    assert len(set(chosen)) == len(chosen) == min(count, most)
    assert chosen == sorted(chosen)
    if most >= 10:
        assert chosen[:2] == [0, 1][:count], "the first change is always seen"
        assert sum(number <= (count - 1) / 2 for number in chosen) >= len(chosen) / 2


@pytest.mark.parametrize("steps", [EPOCHS, LOG_SCHEDULE], ids=["epochs", "log"])
def test_early_changes_show_with_real_schedules(steps):
    chosen = [steps[number] for number in spread(len(steps), 12)]
    assert chosen[:2] == steps[:2]
    assert chosen[-1] == steps[-1]
    assert sum(step <= steps[-1] / 4 for step in chosen) >= 6
    later = list(pairwise(chosen[3:]))
    assert all(after - before >= steps[1] for before, after in later)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 13, 31])
def test_frame_k_of_a_strip_shows_map_k(count):
    of = history(EPOCHS[:count])
    for sample in range(2):
        assert shown_runs(sample_strip(of, sample), of, sample) == spread(count, 12)


def test_a_strip_has_as_many_columns_as_asked_for_and_is_narrow():
    of = history(EPOCHS)
    assert shown_runs(sample_strip(of, 0, columns=5), of, 0) == spread(31, 5)
    assert sample_strip(of, 0).shape[1] < 500, "TensorBoard shrinks wider pictures until nobody can read them"


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (224, 224), (300, 900), (900, 300), (1, 50)])
def test_strips_of_all_images_are_alike(size):
    pixels = sample_strip(history([0, 1], size=size), 0)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == sample_strip(history([0, 1]), 0).shape[1:]


def test_the_table_shows_the_same_frames():
    of = history(EPOCHS, samples=3)
    pixels = film_strip(of, samples=[2, 0])
    tops = []
    for sample in (2, 0):
        assert shown_runs(pixels, of, sample) == spread(31, 10)
        tops.append(places(pixels, of.images[sample])[0][0])
    assert tops == sorted(tops), "in the order that was asked for"
    assert not shown_runs(pixels, of, 1)
    assert len(film_strip(of)) > 1.3 * len(pixels)
    assert film_strip(of, columns=4).shape[1] < pixels.shape[1]


def test_a_growing_film_is_the_same_as_one_drawn_at_once():
    of = history([])
    film = Film(of)
    for step in EPOCHS[:20]:
        of.add(run(step))
        for sample in range(2):
            np.testing.assert_array_equal(film.strip(sample), sample_strip(of, sample))


@pytest.mark.parametrize("again", [188, 200], ids=["the same step", "another step"])
def test_what_a_resumed_training_runs_through_again_is_drawn_again(again):
    of = history(EPOCHS[:6])
    film = Film(of)
    before = film.strip(0)
    of.add(run(again, seed=99))
    assert len(of) < 6
    after = film.strip(0)
    np.testing.assert_array_equal(after, sample_strip(of, 0))
    assert places(after, expected_frame(of, 0, len(of) - 1))
    assert not places(before, expected_frame(of, 0, len(of) - 1))


def test_only_what_is_new_is_drawn_and_no_more_is_kept_than_is_shown(monkeypatch):
    drawn = []
    tile = film_module._tile
    monkeypatch.setattr(film_module, "_tile", lambda *arguments: drawn.append(arguments) or tile(*arguments))
    of = history(EPOCHS[:8])
    film = Film(of)
    film.strip(0)
    assert len(drawn) == 8
    film.strip(0)
    assert len(drawn) == 8
    of.add(run(EPOCHS[8]))
    film.strip(0)
    assert len(drawn) == 9
    for step in EPOCHS[9:]:
        of.add(run(step))
        film.strip(0)
        assert sum(map(len, film._tiles.values())) <= 12


def test_a_missing_map_is_left_empty_and_one_without_evidence_is_dark():
    of = history(EPOCHS[:4])
    of._runs[1]["heatmaps"][0, 0] = np.nan
    of._runs[1]["targets"][0, 0] = -1
    of._runs[2]["heatmaps"][0, 0] = 0
    of._runs[2]["preserved"][0, 0] = np.nan
    pixels = sample_strip(of, 0)
    assert shown_runs(pixels, of, 0) == [0, 2, 3]
    (left_of_it,) = places(pixels, expected_frame(of, 0, 0))
    ((top, left),) = places(pixels, np.full((SIDE, SIDE, 3), NOTHING, dtype=np.uint8))
    assert top == left_of_it[0]
    assert left > left_of_it[1]
    assert places(film_strip(of), np.full((SIDE, SIDE, 3), NOTHING, dtype=np.uint8))
    frames = gif_frames(animation(of))
    nothing = [np.isclose(frame, NOTHING, atol=6).all(2).mean() for frame in frames]
    assert nothing[1] > nothing[0] + 0.2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"predicted": 0}, {"predicted": 1}),
        ({"label": 0}, {"label": None}),
        ({"predicted": 0}, {"predicted": None}),
        ({"target": 0}, {"target": 1}),
        ({"target": 0}, {"target": 0, "against": 2}),
    ],
)
def test_what_is_said_follows_what_was_seen(one, other):
    """The same maps, other words."""
    some, others = history([0, 5], **one), history([0, 5], **other)
    pixels, other_pixels = sample_strip(some, 0), sample_strip(others, 0)
    assert shown_runs(pixels, some, 0) == shown_runs(other_pixels, some, 0) == [0, 1]
    assert pixels.shape != other_pixels.shape or (pixels != other_pixels).any()


def test_where_the_class_changes_each_frame_says_which():
    same, changing = history([0, 5, 9]), history([0])
    changing.add(run(5, target=1))
    changing.add(run(9))
    assert len(sample_strip(changing, 0)) > len(sample_strip(same, 0)), "a line more"
    against = history([0], against=1)
    against.add(run(5, against=2))
    assert len(sample_strip(against, 0)) > len(sample_strip(history([0, 5], against=2), 0))


def test_classes_without_names():
    of = history([0, 5], target=7, predicted=9, label=8)
    assert shown_runs(sample_strip(of, 0), of, 0) == [0, 1]
    assert film_strip(of).any()


def gif_frames(picture):
    with Image.open(io.BytesIO(picture.data)) as gif:
        return [np.asarray(frame.convert("RGB"), dtype=float) for frame in ImageSequence.Iterator(gif)]


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (2, 2), (31, 31), (103, 60)])
def test_the_animation_plays_for_ever_and_rests_at_the_end(count, frames):
    picture = animation(history(range(0, 7 * count, 7)))
    with Image.open(io.BytesIO(picture.data)) as gif:
        assert gif.format == "GIF"
        assert gif.n_frames == frames
        assert gif.info["loop"] == 0
        assert gif.size == (picture.width, picture.height)
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert durations[-1] > 2 * max(durations[:-1], default=1)
    assert sum(durations[:-1]) < 12_000
    shown = gif_frames(picture)
    assert all((one != other).any() for one, other in pairwise(shown))


def test_frame_k_of_the_animation_shows_map_k():
    """Up to the palette of a GIF: where its dots are averaged, it is the same."""
    of = history(range(5), samples=1)
    picture = animation(of)
    side = picture.width - 16  # but for the margins
    larger = Image.fromarray(of.images[0]).resize((side, side), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(larger)).permute(2, 0, 1) / 255
    frames = gif_frames(picture)
    overlays = [averaged(np.asarray(overlay(image, one, side))) for one in torch.from_numpy(of.heatmaps(0)[:, 0])]
    seen = [averaged(frame[-side - 8 : -8, 8:-8]) for frame in frames]
    distances = np.array([[np.abs(one - other).mean() for other in overlays] for one in seen])
    assert distances.argmin(1).tolist() == list(range(5))
    assert distances.diagonal().max() < 2  # of 255
    assert distances[0, 1] > 10


def averaged(pixels, block=8):
    """The mean of each block of pixels."""
    height, width = (edge // block for edge in pixels.shape[:2])
    return pixels[: height * block, : width * block].reshape(height, block, width, block, 3).mean((1, 3))


def test_every_sample_has_its_place_in_the_animation():
    of = history(range(4), samples=5)
    before = gif_frames(animation(of))
    for sample in range(5):
        changed = history(range(4), samples=5)
        changed._runs[2]["heatmaps"][sample] = 1 - changed._runs[2]["heatmaps"][sample]
        different = (gif_frames(animation(changed))[2] != before[2]).any(2)
        tops, lefts = np.nonzero(different)
        assert different.mean() > 0.05
        assert np.ptp(tops) < before[2].shape[0] / 2
        assert np.ptp(lefts) < before[2].shape[1] / 3
        row, column = divmod(sample, 3)
        assert (tops.mean() > before[2].shape[0] / 2, lefts.mean() // (before[2].shape[1] / 3)) == (row == 1, column)


@pytest.mark.parametrize("samples", [1, 16, 64])
def test_animations_are_small_whatever_they_show(samples):
    noise = history(range(20), samples=samples, size=(64, 64))  # and of all steps the maps are others
    picture = animation(noise)
    assert len(picture.data) < 2.5e6, "of 60 frames three times as much"
    assert picture.width <= 400


def test_what_cannot_be_shown_is_told():
    of = history([0, 5])
    for wrong in (2, -1, 1.5, True):
        with pytest.raises(UsageError, match=r"no sample .*numbered from 0 to 1"):
            sample_strip(of, wrong)
    with pytest.raises(UsageError, match="no sample 7"):
        film_strip(of, samples=[0, 7])
    with pytest.raises(UsageError, match="no sample 7"):
        animation(of, samples=[7])
    with pytest.raises(UsageError, match=r"samples=\[\] names no sample"):
        film_strip(of, samples=[])
    with pytest.raises(UsageError, match="columns=1 must be"):
        Film(of, columns=1)
    with pytest.raises(UsageError, match="columns='12' must be"):
        film_strip(of, columns="12")
    with pytest.raises(UsageError, match="frames=0 must be"):
        animation(of, frames=0)
    for draw in (lambda none: sample_strip(none, 0), film_strip, animation):
        with pytest.raises(UsageError, match="no runs yet"):
            draw(history([]))


@pytest.mark.browser
def test_in_tensorboard_the_animation_plays_and_a_strip_is_one_picture(tmp_path):
    logger, of = TensorBoardLogger(tmp_path), history([])
    film = Film(of, columns=4)
    for step in range(0, 60, 4):  # more runs than TensorBoard keeps pictures of
        of.add(run(step))
        pictures = {"gfi/film_0": encoded(film.strip(0))}
        log_pictures(logger, pictures | ({"gfi/animation": film.animation()} if step == 56 else {}), step)
    with tensorboard(tmp_path) as address, chromium() as browser:
        browser.get(f"{address}/#images")
        ready = "return arguments[0].complete && arguments[0].naturalWidth"

        def cards():
            found = {}
            for card in find_all(browser, "tf-image-loader"):
                images = [image for image in find_all(browser, "img") if is_inside(browser, image, card)]
                if len(images) == 1 and browser.execute_script(ready, images[0]):
                    found[next(tag for tag in ("gfi/film_0", "gfi/animation") if tag in card.text)] = images[0]
            return found if len(found) == 2 and len(find_all(browser, "tf-image-loader")) == 2 else None

        pictures = wait_for(cards)
        strip, moving = pictures["gfi/film_0"], pictures["gfi/animation"]
        assert browser.execute_script(ready, strip) == film.strip(0).shape[1]
        assert browser.execute_script(ready, moving) == film.animation().width
        still, first = strip.screenshot_as_png, moving.screenshot_as_png
        wait_for(lambda: moving.screenshot_as_png != first, seconds=10)
        assert strip.screenshot_as_png == still, "it is the animation that moves, not the page"


def is_inside(browser, node, card):
    """Whether a node lies below another one, also within its shadow roots."""
    script = """
    for (let node = arguments[0]; node; node = node.parentNode || node.host) if (node === arguments[1]) return true;
    return false;
    """
    return browser.execute_script(script, node, card)
