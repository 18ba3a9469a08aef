"""Letters on pictures: fonts, inks, and text that fits."""

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

INK, FAINT, PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)
LINE, FONT_SIZE = 21, 15  # px


@cache
def font(bold: bool = False, size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """A font that is there on every machine, because Matplotlib ships it, with Greek, Cyrillic and signs."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)


def fitted(text: str, width: int, bold: bool = False, size: int = FONT_SIZE, keep_end: bool = False) -> str:
    """The text on one line, shortened with an ellipsis, behind it or in front, to at most the given width in px."""
    text, letters = " ".join(text.split()), font(bold, size)
    if letters.getlength(text) <= width:
        return text
    lengths = range(len(text) - 1, 0, -1)
    shorter = ("…" + text[-length:] if keep_end else text[:length] + "…" for length in lengths)
    return next((part for part in shorter if letters.getlength(part) <= width), "…")
