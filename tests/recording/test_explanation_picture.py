"""An explanation shows itself as a picture."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from gfi_lightning import GuidedFeatureInversion, UsageError
from gfi_lightning.recording.explained import draw_explanation
from gfi_lightning.recording.images import denormalized
from gfi_lightning.recording.pictures import enlarged, overlay
from tests.networks import ToyCNN, random_images
from tests.training.modules import QUICK

IMAGES = random_images(3, dtype=torch.float32)


@pytest.fixture(scope="module")
def explainer():
    return GuidedFeatureInversion(ToyCNN(), recipe=QUICK, layers=["fine", "coarse"])


@pytest.fixture(scope="module")
def explanation(explainer):
    return explainer.explain(IMAGES, torch.tensor([[0, 1], [2, 3], [4, 0]]))


def shown_in(picture, panel):
    """Whether a panel is to be found in a picture, pixel for pixel."""
    panel = np.asarray(panel)
    height, width = panel.shape[:2]
    wanted = panel[height // 2].tobytes()
    for middle, line in enumerate(picture):
        left, top = line.tobytes().find(wanted) // 3, middle - height // 2
        if left >= 0 and top >= 0 and np.array_equal(picture[top : top + height, left : left + width], panel):
            return True
    return False


def test_every_map_and_image_is_shown_as_the_callback_draws_them(explanation):
    pixels = draw_explanation(explanation)
    for number, image in enumerate(IMAGES):
        shown = (image - image.min()) / (image.max() - image.min())
        maps = [explanation.foreground[number], *explanation.heatmaps[number]]
        assert shown_in(pixels, enlarged(shown, 200))
        assert all(shown_in(pixels, overlay(shown, one, 200)) for one in maps)
        depths = [
            overlay(shown, one).resize((208, 208), Image.Resampling.LANCZOS) for one in explanation.depths[number]
        ]
        assert all(shown_in(pixels, one) for one in depths)
    assert not shown_in(pixels, overlay(shown, 1 - explanation.foreground[2], 200))


def test_images_are_shown_as_they_were_before_normalising(explanation):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]
    picture = enlarged(denormalized(IMAGES, mean, std)[1], 200)
    assert shown_in(draw_explanation(explanation, mean=mean, std=std), picture)
    assert not shown_in(draw_explanation(explanation), picture)


def test_images_within_the_unit_range_are_shown_as_they_are(explainer):
    images = 0.2 + 0.1 * IMAGES.clamp(-1, 1)
    assert shown_in(draw_explanation(explainer.explain(images)), enlarged(images[0], 200))


def test_what_happens_to_the_images_afterwards_does_not_show(explainer):
    images = IMAGES.clone()
    explanation = explainer.explain(images, 0)
    before = draw_explanation(explanation)
    images.zero_()
    assert (draw_explanation(explanation) == before).all()


@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_images_come_in_their_order_and_can_be_selected(chunk_size):
    explainer = GuidedFeatureInversion(ToyCNN(), recipe=QUICK, chunk_size=chunk_size)
    explanation = explainer.explain(IMAGES)
    assert torch.equal(explanation.images, IMAGES)
    assert torch.equal(explanation.predicted, explanation.targets)
    some = explanation.select(torch.tensor([False, True, True]))
    assert torch.equal(some.images, IMAGES[1:])
    assert shown_in(draw_explanation(some), enlarged((IMAGES[2] - IMAGES[2].min()) / np.ptp(IMAGES[2].numpy()), 200))


def test_names_change_the_titles_only(explanation):
    named = draw_explanation(explanation, ["cat", "dog", "hen", "bee", "ant"])
    plain = draw_explanation(explanation)
    assert named.shape == plain.shape
    assert 0 < (named != plain).any(2).mean() < 0.05


def test_a_limit_leaves_out_the_last_ones_and_says_so(explanation):
    assert len(draw_explanation(explanation, limit=1)) < len(draw_explanation(explanation)) / 2
    alone = draw_explanation(explanation.select(torch.tensor([True, False, False])))
    limited = draw_explanation(explanation, limit=1)
    assert alone.shape == limited.shape
    assert (alone != limited)[:35].any()  # "the first 1 of 3 images"
    with pytest.raises(UsageError, match="limit=0 must be"):
        explanation.plot(limit=0)


def test_many_targets_go_on_below(explainer):
    many = explainer.explain(IMAGES[:1], torch.arange(5)[None])
    few = explainer.explain(IMAGES[:1], torch.arange(4)[None])
    assert draw_explanation(many).shape[1] == draw_explanation(few).shape[1]
    assert all(shown_in(draw_explanation(many), overlay(stretched, one, 200)) for stretched, one in of_first(many))


def of_first(explanation):
    image = IMAGES[0]
    return [((image - image.min()) / (image.max() - image.min()), one) for one in explanation.heatmaps[0]]


def test_a_contrast_half_precision_and_no_evidence_can_be_shown(explainer):
    contrast = explainer.explain(IMAGES, torch.tensor([0, 1, 2]), against=4)
    empty = explainer.explain(torch.zeros(2, 3, 16, 16) + torch.tensor(torch.nan), 0)
    assert empty.degenerate.all()
    assert "2 without evidence" in repr(empty)
    for one in (contrast, empty, replace(contrast, images=contrast.images.bfloat16())):
        assert one._repr_png_() is not None


def test_without_images_maps_lie_on_grey(explanation):
    grey = torch.full((1, 16, 16), 0.5)
    pixels = draw_explanation(replace(explanation, images=None))
    assert shown_in(pixels, overlay(grey, explanation.heatmaps[0, 1], 200))


def test_one_line_of_text(explanation):
    explanation = replace(explanation, preserved=torch.full((3, 2), 0.25), removed=torch.full((3, 2), 0.5))
    line = "<Explanation of 3 images of 16 × 16: targets [[0, 1], [2, 3], [4, 0]], preserved 0.25, removed 0.50>"
    assert repr(explanation) == line
    nobody = explanation.select(torch.zeros(3, dtype=torch.bool))
    assert repr(nobody) == "<Explanation of 0 images of 16 × 16: targets []>"
    assert nobody._repr_png_() is None  # and the notebook has the line


def test_a_figure_that_pyplot_does_not_know(explanation):
    from matplotlib import pyplot

    figure = explanation.plot(["cat", "dog", "hen", "bee", "ant"])
    assert isinstance(figure, Figure)
    assert pyplot.get_fignums() == []
    pixels = draw_explanation(explanation, ["cat", "dog", "hen", "bee", "ant"])
    figure.savefig(file := io.BytesIO(), format="png")
    shown = np.asarray(Image.open(file).convert("RGB"))
    assert shown.shape == pixels.shape
    assert (shown == pixels).all()


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG")])
def test_files(explanation, tmp_path, suffix, kind):
    explanation.save(tmp_path / f"a.{suffix}")
    saved = Image.open(tmp_path / f"a.{suffix}")
    assert saved.format == kind
    assert np.abs(np.asarray(saved).astype(float) - draw_explanation(explanation)).mean() < 3


def test_a_pdf(explanation, tmp_path):
    explanation.save(str(tmp_path / "a.pdf"))
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_what_cannot_be_saved(explanation, tmp_path):
    with pytest.raises(UsageError, match=r"a\.bmp'\) cannot write that kind of file: end it with \.png, \.jpg"):
        explanation.save(tmp_path / "a.bmp")
    with pytest.raises(UsageError, match=r"there is no folder .*missing'\. Create it first"):
        explanation.save(tmp_path / "missing" / "a.png")
    with pytest.raises(UsageError, match="must be given together"):
        explanation.save(tmp_path / "a.png", mean=[0.5])
    with pytest.raises(UsageError, match="has 2 numbers, but the images have 3 channels"):
        explanation.plot(mean=[0.5, 0.5], std=[1, 1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.notebook
def test_in_a_notebook(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    setup = (
        "import torch, sys\n"
        "from gfi_lightning import GuidedFeatureInversion\n"
        "from tests.networks import ToyCNN, random_images\n"
        "explanation = GuidedFeatureInversion(ToyCNN()).explain(random_images(2).float())"
    )
    cells = [setup, "explanation", "explanation.plot()", "import matplotlib.pyplot as plt; explanation.plot()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    for cell in notebook.cells[1:]:
        (output,) = cell.outputs
        picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
        assert min(picture.size) > 400
    assert notebook.cells[1].outputs[0].data["text/plain"].startswith("<Explanation of 2 images of 16 × 16: ")
