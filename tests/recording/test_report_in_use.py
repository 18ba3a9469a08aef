"""The page as people use it: with a pointer and with keys, on a laptop and on a phone, in a real browser."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from gfi_lightning import History
from gfi_lightning.recording.pictures import overlay
from gfi_lightning.recording.report import write_report
from gfi_lightning.recording.report.contents import COLOR_MAPS
from tests.browser import chromium
from tests.recording.histories import NASTY, Plan, in_memory, write
from tests.recording.report_page import MAPS, Page

# Samples 1 and 4 are misclassified at the end, and sample 2 never comes to rest.
PLAN = Plan(steps=(0, 1, 2, 4, 8, 16, 32, 64, 96), samples=6)
OTHER = Plan(steps=(0, 10, 20, 40), samples=6, contrasts=True)  # the same samples, in another training


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run, two runs, and what is peculiar."""
    folder = tmp_path_factory.mktemp("pages")
    one, other = write(folder / "one", PLAN), write(folder / "other", OTHER)
    unlike = write(folder / "unlike", Plan(steps=(0, 50), samples=4, size=(48, 80), seed=7))
    write_report({"one": one}, folder / "one.html")
    write_report({"one": one, "other": other}, folder / "two.html")
    write_report({"one": one, "unlike": unlike}, folder / "unlike.html")
    return folder


@pytest.fixture
def page(browser, folder):
    page = Page(browser, folder / "one.html")
    yield page
    assert page.complaints() == []


@pytest.fixture
def two(browser, folder):
    page = Page(browser, folder / "two.html")
    yield page
    assert page.complaints() == []


@pytest.mark.browser
def test_the_page_opens_at_the_last_step_with_the_worst_samples_first(page):
    assert page.text("h1") == "one"
    assert page.text("#summary") == "9 steps · 6 samples · 2 misclassified at the end"
    assert page.step() == "step 96"
    order = page.order()
    assert sorted(order[:2]) == [1, 4]
    assert order[2] == 2, "the most drifting of the others"
    badges = [bool(page.all(f'[data-sample="{sample}"] .badge')) for sample in order]
    assert badges == [True, True, False, False, False, False]
    wrong = page.one('[data-sample="1"]').text
    for caption in ("label: bee", "✗ crow p 0.70", "bee p 0.10", "the label", "kept 0.09 · removed 0.02", "settled"):
        assert caption in wrong
    assert "✓ crow p 0.90" in page.text('[data-sample="2"] .facts')
    assert "settled\nnot yet" in page.text('[data-sample="2"] .facts')
    assert "the label and the prediction" in page.text('[data-sample="3"]')


@pytest.mark.browser
@pytest.mark.parametrize("sample", [0, 1])
def test_the_pixels_are_those_of_the_pictures_in_tensorboard(page, folder, sample):
    history = History.load(folder / "one")
    image = torch.from_numpy(history.images[sample]).permute(2, 0, 1) / 255
    expected = np.asarray(overlay(image, torch.from_numpy(history.heatmaps(sample)[-1, 0]), 320), dtype=float)
    difference = np.abs(page.pixels(page.map_of(sample)) - expected)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) < 12  # at the discs' edges, which are enlarged otherwise


@pytest.mark.browser
def test_dragging_the_slider_moves_all_maps_and_cursors(page):
    maps, images, cursors = page.sums(MAPS), page.sums("figure.original canvas"), page.cursors()
    assert len(maps) == 6, "samples"
    page.drag("#step", 0.99, 0.5)
    page.goes_to(8)
    page.until(lambda: all(now != before for now, before in zip(page.sums(MAPS), maps, strict=True)))
    assert page.sums("figure.original canvas") == images
    assert len(cursors) == 7, "charts"
    assert len(set(page.cursors())) == 1
    # True to scale: step 8 is a twelfth of the way, although it is in the middle of the slider.
    start, end = 38, cursors[0]
    assert page.cursors()[0] == pytest.approx(start + (end - start) / 12, abs=0.01)
    page.drag("#step", 0.5, 0.99)
    page.goes_to(96)
    page.until(lambda: page.sums(MAPS) == maps)


@pytest.mark.browser
def test_play_moves_all_samples_until_the_end(page):
    seen, steps = [], []
    page.one("#play").click()
    page.until(lambda: page.one("#play").get_attribute("aria-label") == "Pause")
    while page.one("#play").get_attribute("aria-label") == "Pause":
        steps.append(page.step())
        seen.append(page.sums(MAPS))
    assert len(set(steps)) > 3
    assert all(len({sums[sample] for sums in seen}) > 3 for sample in range(6))
    assert page.step() == "step 96"
    page.press(Keys.SPACE)
    page.goes_to(2)
    page.press(Keys.SPACE)
    page.until(lambda: page.one("#play").get_attribute("aria-label") == "Play")


@pytest.mark.browser
def test_play_is_calm_for_who_asked_for_less_motion(page):
    page.emulate(reduced_motion="reduce")
    page.press(Keys.SPACE)
    page.goes_to(0)
    start = time.monotonic()
    page.goes_to(1)
    assert time.monotonic() - start > 0.8
    page.press(Keys.SPACE)


@pytest.mark.browser
def test_keys(page):
    for key, step in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.END, 96), (Keys.ARROW_LEFT, 64)):
        page.press(key)
        page.goes_to(step)
    order = page.order()
    for key, sample in (("j", 0), (Keys.ARROW_DOWN, 1), ("j", 2), ("k", 1), (Keys.ARROW_UP, 0)):
        page.press(key)
        page.until(lambda sample=sample: page.one(".selected").get_attribute("data-sample") == str(order[sample]))
    assert page.text("#curves-title").startswith(f"Curves of sample {order[0]}")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all(".selected"))
    for key, shown in (("o", "70 %"), ("O", "60 %"), ("O", "50 %")):
        page.press(key)
        page.until(lambda shown=shown: page.text("#opacity-shown") == shown)
    for key, selector, value in (("c", "#color-map", COLOR_MAPS[1]), ("C", "#color-map", COLOR_MAPS[0])):
        page.press(key)
        page.until(lambda selector=selector, value=value: page.one(selector).get_attribute("value") == value)
    page.press("s")
    page.until(lambda: page.one("#order").get_attribute("value") == "misclassified")
    page.press("t")
    page.until(lambda: page.text("#target [aria-pressed=true]") == "Predicted")
    page.press("?")
    page.until(lambda: "one step back" in page.text("#help"))
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("#help").is_displayed())


@pytest.mark.browser
def test_the_focus_is_seen_and_a_control_that_has_it_keeps_its_keys(page):
    page.press(Keys.TAB, Keys.TAB, Keys.TAB)
    focused = page.browser.switch_to.active_element
    assert focused.get_attribute("id") == "play"
    assert focused.value_of_css_property("outline-style") == "solid"
    page.browser.execute_script("document.getElementById('opacity').focus()")
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page.text("#opacity-shown") == "55 %")
    assert page.step() == "step 96"
    page.one("#target [data-view=any]").click()
    page.press(Keys.ARROW_LEFT)
    page.goes_to(64)


@pytest.mark.browser
def test_every_control_has_a_name(page):
    nameless = page.browser.execute_script(
        "return [...document.querySelectorAll('button, input, select')].filter((one) => "
        "!one.textContent.trim() && !one.getAttribute('aria-label') && !(one.labels && one.labels.length))"
        ".map((one) => one.outerHTML)"
    )
    assert nameless == []
    assert page.one("#step").get_attribute("aria-valuetext") == "step 96, epoch 6 · 9 of 9"


@pytest.mark.browser
def test_targets(two):
    Select(two.one("#right")).select_by_visible_text("none")
    Select(two.one("#left")).select_by_visible_text("other")
    two.until(lambda: len(two.all(MAPS)) == 6 and two.step() == "step 40")
    label = {sample: two.sums(two.map_of(sample)) for sample in (1, 3)}
    two.one("#target [data-view=predicted]").click()
    two.until(lambda: "crow p 0.70" in two.text('[data-sample="1"] .map'))
    assert two.sums(two.map_of(1)) != label[1], "the prediction is another class, with a map of its own"
    two.until(lambda: two.sums(two.map_of(3)) == label[3])  # the prediction is the label
    two.one("#target [data-view=contrast]").click()
    two.until(lambda: "bee rather than crow p 0.30 of the two" in two.text('[data-sample="1"] .map'))
    assert "the label, not the prediction" in two.text('[data-sample="1"] .map')
    two.until(lambda: two.text('[data-sample="3"] .reason') == "No contrast of two classes at this step.")
    two.one("#target [data-view=any]").click()
    two.until(lambda: two.text('[data-sample="3"] .map .title') == "any class")
    two.one("#target [data-view=all]").click()
    two.until(lambda: len(two.all('[data-sample="1"] .map')) == 4)
    two.wait_until_drawn()
    assert [title.text for title in two.all('[data-sample="1"] .map .title')][:2] == ["bee p 0.10", "crow p 0.70"]


@pytest.mark.browser
def test_what_has_no_map_is_said_to_have_none(browser, tmp_path):
    history = in_memory(dataclasses.replace(PLAN, predictions=False))
    whole = history.heatmaps

    def not_finite_at_the_end(sample):
        maps = whole(sample)
        maps[-1] *= sample != 5
        maps[-1, :, 0, 0] += np.nan if sample == 0 else 0
        return maps

    history.heatmaps = not_finite_at_the_end
    write_report({"run": history}, tmp_path / "page.html")
    page = Page(browser, tmp_path / "page.html")
    assert page.text('[data-sample="0"] .reason') == "The map is missing: its values are not finite."
    assert "kept" in page.text('[data-sample="0"] .map')
    assert not page.one('[data-sample="3"] .reason').is_displayed()
    assert "the label and the prediction: no evidence found" in page.text('[data-sample="5"] .map')
    assert not page.one("#target [data-view=contrast]").is_enabled()
    page.one("#target [data-view=predicted]").click()
    page.until(lambda: page.text('[data-sample="1"] .reason') == "No map of the prediction, crow, at this step.")
    assert page.text('[data-sample="1"] .map figcaption') == ""
    assert page.complaints() == []


@pytest.mark.browser
def test_opacity_and_colours(page):
    maps, scale = page.sums(MAPS), page.sums("#color-bar")
    page.drag("#opacity", 0.6, 0.2)
    page.until(lambda: page.text("#opacity-shown") != "60 %")
    page.until(lambda: all(now != before for now, before in zip(page.sums(MAPS), maps, strict=True)))
    assert page.sums("#color-bar") != scale
    page.one("#opacity-reset").click()
    page.until(lambda: page.sums(MAPS) == maps)
    Select(page.one("#color-map")).select_by_visible_text("viridis")
    page.until(lambda: all(now != before for now, before in zip(page.sums(MAPS), maps, strict=True)))
    page.drag("#opacity", 0.6, -0.2)
    page.until(lambda: page.text("#opacity-shown") == "0 %")
    page.until(lambda: page.sums(MAPS) == page.sums("figure.original canvas"))


@pytest.mark.browser
def test_orders(page):
    expected = {"Number": [0, 1, 2, 3, 4, 5], "Misclassified": [1, 4, 0, 2, 3, 5]}
    for name, order in expected.items():
        Select(page.one("#order")).select_by_visible_text(name)
        page.until(lambda order=order: page.order() == order)
    Select(page.one("#order")).select_by_visible_text("Drift")
    page.until(lambda: page.order()[0] == 2)


@pytest.mark.browser
def test_regions(page, folder):
    maps, images = page.sums(MAPS), page.sums("figure.original canvas")
    page.press("r")
    page.until(lambda: all(now != before for now, before in zip(page.sums(MAPS), maps, strict=True)))
    assert page.text("#region-names") == "object\ndistractor"
    outlined = page.pixels('[data-sample="0"] .original canvas')
    is_outline = (np.abs(outlined.astype(int) - (0x4D, 0xD9, 0xFF)) < 12).all(-1)
    mask = np.kron(History.load(folder / "one").regions["object"][0], np.ones((5, 5), dtype=bool))
    assert is_outline.sum() > 200
    rows, columns = np.nonzero(is_outline)
    disc_rows, disc_columns = np.nonzero(mask)
    for seen, there in ((rows, disc_rows), (columns, disc_columns)):
        assert abs(seen.min() - there.min()) <= 2
        assert abs(seen.max() - there.max()) <= 2
    page.press("r")
    page.until(lambda: page.sums(MAPS) == maps and page.sums("figure.original canvas") == images)


@pytest.mark.browser
def test_curves(page, folder):
    titles = [heading.text.split("\n")[0] for heading in page.all("#curves h3")]
    assert titles[0].startswith("Kept and removed")
    assert any(title.startswith("Energy in the regions") for title in titles)
    history = History.load(folder / "one")
    legend = page.text("#curves .curve:first-child .legend")
    for name, curve in (("kept", "preserved"), ("removed", "removed")):
        assert f"{name}\n{history.curve(curve)[-1].mean():.2f}" in legend
    assert len(page.all("#curves .band")) == 1
    page.drag("#curves .curve:nth-child(2) .chart", 0.9, 0.4)
    page.goes_to(32)
    page.one('[data-sample="4"] .pick').click()
    page.until(lambda: "Curves of sample 4" in page.text("#curves-title"))
    legend = page.text("#curves .curve:first-child .legend")
    assert f"kept\n{history.curve('preserved')[6, 4]:.2f}" in legend
    assert len(page.all("#curves .curve:first-child .line")) == 4
    page.one("#deselect").click()
    page.until(lambda: len(page.all("#curves .curve:first-child .line")) == 2)


@pytest.mark.browser
def test_two_runs_side_by_side(two):
    assert [name.text for name in two.all('[data-sample="0"] .run-name .name')] == ["one", "other"]
    assert len(two.all(MAPS)) == 12
    assert len(two.all("figure.original")) == 6
    assert not two.one("#notice").is_displayed()
    # The slider goes over the steps of both: 0, 1, 2, 4, 8, 10, 16, 20, 32, 40, 64 and 96.
    assert two.one("#step").get_attribute("max") == "11"
    steps = [step.text for step in two.all('[data-sample="0"] .run-name .faint')]
    assert steps == ["step 96", "step 40"]
    two.press(Keys.HOME, *[Keys.ARROW_RIGHT] * 8)
    two.goes_to(32)
    nearest = ["step 32", "step 40"]
    two.until(lambda: [step.text for step in two.all('[data-sample="0"] .run-name .faint')] == nearest)
    lines = two.all("#curves .curve:first-child .line")
    assert ["dashed" in line.get_attribute("class") for line in lines] == [False, True] * 2
    assert [line.value_of_css_property("stroke-dasharray") for line in lines[:2]] == ["none", "5px, 4px"]
    Select(two.one("#left")).select_by_visible_text("other")
    two.until(lambda: len({tuple(two.sums(f".run-part:nth-child({n}) canvas")) for n in (1, 2)}) == 1)


@pytest.mark.browser
def test_runs_with_other_samples(browser, folder):
    page = Page(browser, folder / "unlike.html")
    assert "do not show the same samples" in page.text("#notice")
    assert len(page.all("figure.original")) == 6 + 4
    assert page.text('[data-sample="5"] .run-part:nth-child(2) .reason') == "This run has no sample 5."
    assert page.complaints() == []


@pytest.mark.browser
@pytest.mark.parametrize("mobile", [True, False])  # scroll bars lie over the page, or take some of its width
def test_on_a_phone(browser, tmp_path, mobile):
    names = tuple(f"{'averylongnamewithoutanyspace' * 3}{number}" for number in range(4))
    history = write(tmp_path, dataclasses.replace(OTHER, class_names=names, regions=names[:2]))
    write_report({names[0]: history, names[1]: history}, tmp_path / "page.html")
    page = Page(browser, tmp_path / "page.html")
    page.emulate(width=390, height=844, mobile=mobile)

    def overflow():
        return page.browser.execute_script(
            "const widest = [...document.querySelectorAll('body *')].filter((one) => !one.closest('.name'))"
            ".map((one) => [one.getBoundingClientRect().right, one.outerHTML.slice(0, 90)])"
            ".filter(([right]) => right > document.documentElement.clientWidth + 0.5);"
            "return [document.documentElement.scrollWidth <= innerWidth, widest]"
        )

    for view in ("label", "all", "contrast"):
        page.one("#options-open").click()
        page.until(lambda: page.one("#options").is_displayed())
        page.press("r")
        assert overflow() == [True, []]
        page.one(f"#target [data-view={view}]").click()
        page.one("#options-open").click()
        page.until(lambda: not page.one("#options").is_displayed())
        assert overflow() == [True, []]
    page.one("#show-curves").click()
    page.until(lambda: page.one("#curves").is_displayed() and page.all(".chart"))
    assert overflow() == [True, []]
    assert not page.one("#samples").is_displayed()
    page.drag("#curves .curve:first-child .chart", 0.9, 0.15)
    page.goes_to(0)


@pytest.mark.browser
def test_light_and_dark(page):
    def paper():
        return page.one("body").value_of_css_property("background-color")

    assert paper() == "rgba(247, 247, 245, 1)"
    page.emulate(scheme="dark")
    page.until(lambda: paper() == "rgba(18, 19, 22, 1)")
    page.one("#theme").click()
    page.until(lambda: paper() == "rgba(247, 247, 245, 1)")
    page.press("d")
    page.until(lambda: paper() == "rgba(18, 19, 22, 1)")


@pytest.mark.browser
def test_texts_from_users_stay_texts(browser, tmp_path):
    plan = dataclasses.replace(OTHER, class_names=tuple(NASTY[:4]), regions=tuple(NASTY[:2]))
    history = write(tmp_path, plan)
    write_report({NASTY[1]: history, NASTY[0]: history, NASTY[4]: history}, tmp_path / "page.html")
    page = Page(browser, tmp_path / "page.html")
    page.press("r")
    for view in ("predicted", "contrast", "any", "all"):
        page.one(f"#target [data-view={view}]").click()
        page.wait_until_drawn()
    assert browser.execute_script("return window.hacked") is None
    assert page.all("img") == []
    assert browser.title == f"{', '.join((NASTY[1], NASTY[0], NASTY[4]))} – gfi-lightning"
    assert NASTY[0] in page.text("#region-names")
    assert NASTY[1] in page.text('[data-sample="0"]')
    assert [option.text for option in Select(page.one("#left")).options][:2] == [NASTY[1], NASTY[0]]
    assert page.complaints() == []


@pytest.mark.browser
def test_a_single_step_without_labels_or_names(browser, tmp_path):
    plan = Plan(steps=(7,), samples=1, class_names=(), regions=(), labelled=False)
    history = in_memory(dataclasses.replace(plan, class_names=("first", "second")))
    history.class_names = []
    write_report({"run": history}, tmp_path / "page.html")
    page = Page(browser, tmp_path / "page.html")
    assert page.step() == "step 7"
    assert not page.one("#step").is_enabled()
    assert not page.one("#play").is_enabled()
    assert not page.one("#regions-option").is_displayed()
    assert not page.one("#target [data-view=label]").is_enabled()
    assert page.text("#target [aria-pressed=true]") == "Predicted"
    text = page.text(".sample")
    assert all(part in text for part in ("label not known", "class 0", "drift\n–", "settled\n–"))
    assert "misclassified" not in text
    assert "misclassified" not in page.text("#summary"), "of what is not known"
    page.press(Keys.ARROW_RIGHT, Keys.SPACE)
    assert page.complaints() == []


@pytest.mark.browser
def test_several_labels_and_a_score_of_ones_own(browser, tmp_path):
    plan = Plan(steps=(0, 8), samples=4, labelled=False, several_labels=True, score_range=30.0)
    write_report({"several": write(tmp_path, plan)}, tmp_path / "several.html")
    page = Page(browser, tmp_path / "several.html")
    assert "1 misclassified at the end" in page.text("#summary")
    row = page.text('[data-sample="0"]')
    assert all(part in row for part in ("label: ant, crow", "a label and the prediction", "✓", "score 27"))
    assert "p 27" not in row
    assert page.complaints() == []
