"""A heat map as a picture, for slides and papers."""

from __future__ import annotations

from pathlib import Path

from puyulm.data.documents import replacing
from puyulm.errors import DataError
from puyulm.eval.report.charts import Heat, colour_parts

CELL, LEFT, TOP, EDGE, BELOW, SIZE = (72, 44), 110, 56, 24, 64, 18  # pixels
INK, PALE, PAPER = (27, 34, 48), (225, 229, 235), (255, 255, 255)


def write_png(heat: Heat, title: str, path: Path) -> None:
    """Writes a map of depth by length.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise DataError("pictures need Pillow: pip install 'puyulm[eval]'") from None
    (wide, high), columns, rows = CELL, len(heat.columns), len(heat.rows)
    image = Image.new("RGB", (LEFT + wide * columns + EDGE, TOP + high * rows + BELOW), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(SIZE)
    draw.text((EDGE, EDGE / 2 + 6), title.encode("ascii", "replace").decode(), INK, font)  # the font has no more
    for down, (label, cells) in enumerate(zip(heat.rows, heat.cells, strict=True)):
        top = TOP + high * down
        draw.text((LEFT - 10, top + high / 2), label, INK, font, anchor="rm")
        for across, score in enumerate(cells):
            box = (LEFT + wide * across, top, LEFT + wide * (across + 1) - 2, top + high - 2)
            draw.rectangle(box, PALE if score is None else colour_parts(score))
            if score is not None:
                middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
                draw.text(middle, f"{100 * score:.0f}", INK, font, anchor="mm")
    bottom = TOP + high * rows
    for across, label in enumerate(heat.columns):
        draw.text((LEFT + wide * (across + 0.5), bottom + 8), label, INK, font, anchor="ma")
    draw.text((LEFT + wide * columns / 2, bottom + 34), "tokens", INK, font, anchor="ma")
    draw.text((EDGE, bottom + 8), "depth", INK, font)
    with replacing(path) as partial:
        image.save(partial, "PNG")
