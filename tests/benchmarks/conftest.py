import sys
from pathlib import Path

import pytest
from PIL import Image

from gfi_lightning.logs import logger

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(scope="module", autouse=True)  # and so before any other fixture of a module
def log_level_restored():
    """The scripts are quiet, and would leave that to all tests that come after them."""
    level = logger.level
    yield
    logger.setLevel(level)


def write_photograph(folder, name, size, objects, colour=(120, 120, 120), suffix="jpg"):
    """An image and its annotation in VOC's form; objects are (class, (x0, y0, x1, y1) as VOC counts)."""
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / "JPEGImages" / f"{name}.{suffix}")
    nodes = "".join(
        f"<object><name>{thing}</name><bndbox>"
        + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for thing, box in objects
    )
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{nodes}</annotation>", encoding="utf-8")


@pytest.fixture
def voc(tmp_path):
    """A folder with four photographs, 40 × 20."""
    write_photograph(tmp_path, "cat", (40, 20), [("cat", (1, 1, 40, 20)), ("cat", (11, 6, 20, 10))])
    write_photograph(tmp_path, "dog", (40, 20), [("dog", (5, 5, 8, 8))], suffix="png")
    write_photograph(tmp_path, "both", (40, 20), [("dog", (5, 5, 8, 8)), ("cat", (9, 9, 10, 10))])
    write_photograph(tmp_path, "nothing", (40, 20), [])
    return tmp_path
