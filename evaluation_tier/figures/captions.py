"""A caption with a colour bar under a heat-map, drawn without matplotlib."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modeling_tier.heat_map_tier import map_colours

LEAST_EDGE = 512  # pixels; smaller pictures are enlarged, so that the caption has room
INK, PAPER = "#222222", "white"


def add_caption(picture: Image.Image, lines: Sequence[str], limit: float) -> Image.Image:
    """
    The picture with lines of text and the colour bar of its map under it. A line that is too long is broken.

    Args:
        picture: mode "RGB".
        lines: of text.
        limit: the value of the strongest colour.
    """
    factor = LEAST_EDGE / picture.width
    if factor > 1:
        picture = picture.resize((LEAST_EDGE, round(picture.height * factor)), Image.Resampling.BICUBIC)
    width = picture.width
    font = ImageFont.load_default(size=max(13, width // 50))
    margin, height = width // 60, round(1.5 * max(13, width // 50))
    broken = [part for line in lines for part in break_line(line, font, width - 2 * margin)]
    page = Image.new("RGB", (width, picture.height + height * (len(broken) + 1) + 2 * margin), PAPER)
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    at = picture.height + margin
    draw.text((margin, at), broken[0], INK, font)
    at += height
    left, right = f"against -{limit:.2g}", f"{limit:.2g} for the finding"
    start = margin + round(font.getlength(left)) + margin
    length = max(width // 4, 1)
    levels = np.linspace(-limit, limit, length)[None].repeat(height // 2, axis=0)
    draw.text((margin, at), left, INK, font)
    page.paste(Image.fromarray(map_colours(levels, limit).round().astype(np.uint8)), (start, at + height // 8))
    draw.text((start + length + margin, at), right, INK, font)
    for line in broken[1:]:
        at += height
        draw.text((margin, at), line, INK, font)
    return page


def break_line(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The words of a line in lines that are at most `width` pixels long, except for longer words."""
    lines = [""]
    for word in line.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
