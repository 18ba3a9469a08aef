"""What people see: a real run, a real TensorBoard, a real browser."""

import numpy as np
import pytest
from google_crc32c import value as crc32c
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from gfi_lightning.recording.encoding import encoded
from gfi_lightning.recording.loggers.tensorboard import log_pictures
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


def test_the_checksums_are_tensorboards_own(tmp_path, monkeypatch):
    def own(data):
        return pywrap_tensorflow.crc_finalize(pywrap_tensorflow.crc_update(pywrap_tensorflow.CRC_INIT, data))

    monkeypatch.setattr(pywrap_tensorflow, "crc32c", own)
    for length in (0, 1, 8, 1001):
        data = bytes(number * 7 % 256 for number in range(length))
        assert crc32c(data) == own(data)
    logger = TensorBoardLogger(tmp_path, name=None)
    log_pictures(logger, {"gfi/one": encoded(np.zeros((4, 4, 3), dtype=np.uint8))}, 3)
    assert pywrap_tensorflow.crc32c is own, "all others have their own again"
    (event,) = EventAccumulator(logger.log_dir).Reload().Images("gfi/one")  # which checks them
    assert (event.step, event.width) == (3, 4)
