"""What people see: a real run, a real TensorBoard, a real browser."""

import pytest

from tests.browser import chromium, find_all, tensorboard, wait_for
from tests.training.modules import ToyModule, loaders, make_trainer, quick_callback


@pytest.mark.browser
def test_pictures_and_curves_in_tensorboard(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(num_samples=2), max_epochs=2)
    trainer.fit(ToyModule(), **loaders())
    with tensorboard(tmp_path) as address, chromium() as browser:
        browser.get(f"{address}/#images")
        loaded = "return arguments[0].complete && arguments[0].naturalWidth"

        def pictures():
            images = [image for image in find_all(browser, "img") if "plugin/images" in image.get_attribute("src")]
            widths = [browser.execute_script(loaded, image) for image in images]
            return widths if len(widths) == 3 and all(widths) else None

        widths = wait_for(pictures)
        assert min(widths) > 300, "a broken or tiny picture"
        text = " ".join(heading.text for heading in find_all(browser, "tf-image-loader"))
        assert all(f"gfi/{name}" in text for name in ("overview", "sample_0", "sample_1"))

        def sliders():
            return [slider.get_attribute("max") for slider in find_all(browser, "paper-slider#steps")]

        wait_for(lambda: sliders() == ["2"] * 3)  # each goes over the runs 0, 1 and 2, at steps 0, 3 and 7

        browser.get(f"{address}/#scalars")
        browser.refresh()

        def curves():
            return [card for card in find_all(browser, "tf-scalar-card") if "gfi/" in card.text]

        tags = " ".join(card.text for card in wait_for(lambda: curves() if len(curves()) == 3 else None))
        assert all(f"gfi/{name}" in tags for name in ("preserved", "removed", "drift"))
