"""The page as a file: what is in it, how large it is, and that no text in it can do harm."""

import base64
import dataclasses
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from gfi_lightning import UsageError
from gfi_lightning.recording.report import write_report
from gfi_lightning.recording.report.contents import MISSING, contents, data_uri, levels
from tests.recording.histories import NASTY, Plan, in_memory

PLAN, OTHER = Plan(), Plan(steps=(0, 10, 20, 40))  # of the same samples


def embedded(page):
    """The contents that a page holds."""
    (text,) = re.findall(r'<script type="application/json" id="contents">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def test_levels():
    maps = np.array([[[0.0, 0.5], [1.0, 0.25]], [[0.0, np.nan], [1.0, 1.0]], [[-0.1, 1.1], [0, 0]]], dtype=np.float32)
    assert levels(maps)[0].tolist() == [[0, 127], [254, 64]]
    assert (levels(maps)[1] == MISSING).all()
    assert levels(maps)[2].tolist() == [[0, 254], [0, 0]]


def test_small_images_are_kept_without_loss_and_photographs_small():
    generator = np.random.default_rng(0)
    small, photograph = (generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (32, 224))
    drawing = np.zeros((224, 224, 3), dtype=np.uint8)
    for image, kind in ((small, "png"), (photograph, "jpeg"), (drawing, "png")):
        head, data = data_uri(image).split(",")
        assert head == f"data:image/{kind};base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert shown.shape == image.shape
        assert kind == "jpeg" or np.array_equal(shown, image)
    large = np.zeros((300, 2000, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(base64.b64decode(data_uri(large).split(",")[1]))).size == (512, 77)


def test_images_that_runs_share_are_there_once():
    values = contents({"one": in_memory(PLAN), "other": in_memory(OTHER), "further": in_memory(Plan(seed=1))})
    assert len(values["images"]) == 12
    assert [run["images"] for run in values["runs"]] == [[*range(6)], [*range(6)], [*range(6, 12)]]


def test_a_hundred_steps_of_sixteen_photographs_take_less_than_15_mb(tmp_path):
    plan = Plan(tuple(range(0, 1000, 10)), samples=16, size=(224, 224), grid=(16, 16), noise=0.3)
    history = in_memory(plan)
    assert history.heatmaps(1).shape == (100, 2, 16, 16)
    size = write_report({"run": history}, tmp_path / "page.html")
    assert size == (tmp_path / "page.html").stat().st_size
    assert 1e6 < size < 15e6


def test_the_page_asks_nobody_for_anything(tmp_path):
    write_report({"run": in_memory(PLAN)}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    for code in re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_names_cannot_leave_the_contents(tmp_path):
    history = in_memory(dataclasses.replace(PLAN, class_names=tuple(NASTY[:4]), regions=tuple(NASTY[:2])))
    write_report({NASTY[1]: history, "bytes \udcff": history}, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    values = embedded(page)
    assert list(values["runs"][0]["classNames"].values()) == NASTY[:4]
    assert values["runs"][0]["name"] == NASTY[1]
    assert not any(text in page for text in (*NASTY[:4], "\u2028"))


def test_what_cannot_be_reported_on(tmp_path):
    with pytest.raises(UsageError, match="holds no run to report on"):
        write_report({}, tmp_path / "page.html")
    with pytest.raises(UsageError, match="'empty' has no steps yet"):
        write_report({"empty": in_memory(PLAN).at([])}, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_maps_of_a_training_that_was_resumed_with_another_layer_are_of_one_size(tmp_path):
    resumed = in_memory(PLAN)
    for record in in_memory(dataclasses.replace(PLAN, steps=(200,), grid=(4, 4)))._runs:
        resumed.add(record)
    write_report({"resumed": resumed}, tmp_path / "page.html")
    run = embedded((tmp_path / "page.html").read_text(encoding="utf-8"))["runs"][0]
    assert run["heatmaps"]["shape"][-2:] == [4, 4]
    assert run["heatmaps"]["shape"][0] == len(resumed) > 1
