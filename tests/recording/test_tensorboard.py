"""What people see: a real run, a real TensorBoard, a real browser."""

import pytest

from tests.browser import chromium, find_all, tensorboard, wait_for
from tests.training.modules import ToyModule, loaders, make_trainer, quick_callback

PICTURES = ["animation", "curves", "film_0", "film_1", "overview", "sample_0", "sample_1"]
CURVES = ["area", "drift", "drift_floor", "drift_from_first", "entropy", "preserved", "removed", "top_fifth_iou"]
PICTURE_OF = """
const inner = card => (card.shadowRoot || card).querySelector('img');
const picture = inner(arguments[0]);
return picture && picture.complete && picture.naturalWidth ? picture : null;
"""


@pytest.mark.browser
def test_pictures_and_curves_in_tensorboard(tmp_path):
    trainer = make_trainer(tmp_path, quick_callback(num_samples=2), max_epochs=2)
    trainer.fit(ToyModule(), **loaders())
    with tensorboard(tmp_path) as address, chromium() as browser:
        browser.get(f"{address}/#images")

        def pictures():
            cards = {card.text.split()[0]: card for card in find_all(browser, "tf-image-loader") if card.text}
            found = {tag: browser.execute_script(PICTURE_OF, card) for tag, card in cards.items()}
            return found if all(found.get(f"gfi/{name}") for name in PICTURES) else None

        shown = wait_for(pictures)
        assert len(shown) == len(PICTURES)
        widths = [int(picture.get_attribute("naturalWidth")) for picture in shown.values()]
        assert min(widths) > 300, "a broken or tiny picture"

        def sliders():
            return [slider.get_attribute("max") for slider in find_all(browser, "paper-slider#steps")]

        # The pictures of the runs go over 0, 1 and 2, at steps 0, 3 and 7, the animation likewise; and the figure of
        # the curves is drawn once.
        wait_for(lambda: sorted(sliders()) == ["2"] * 6)

        browser.get(f"{address}/#scalars")
        browser.refresh()

        def curves():
            return [card.text for card in find_all(browser, "tf-scalar-card") if "gfi/" in card.text]

        tags = " ".join(wait_for(lambda: curves() if len(curves()) > len(CURVES) else None))
        assert all(f"gfi/{name}" in tags for name in CURVES)
