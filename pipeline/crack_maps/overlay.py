"""Draws a crack map: the photo with crack lines, tiles shaded where no line was found, and a legend below.

A line is drawn as an outline beside the crack, which stays visible inside it.
"""

import numpy as np
import pandas as pd
from PIL import Image, ImageColor, ImageDraw, ImageFont

from pipeline.crack_maps.crack_map import CrackMap
from pipeline.data.images import Pixels

OPACITY = 0.25  # of the shade over cracked tiles without a line
MARKS = {"crack": "#dc1414", "review": "#286eff"}
OUTLINE_WIDTH = 0.001  # of the photo's mean side
LEGEND_HEIGHT = 0.075  # of the photo's mean side
MIN_LEGEND_PX = 54
N_LEGEND_LINES = 3
PAPER, INK = (255, 255, 255), (30, 30, 30)


def overlay_picture(pixels: Pixels, crack_map: CrackMap) -> Image.Image:
    """Return the upright photo, uint8 (height, width, 3), with marks, and a legend with the first caveats below it."""
    height, width, _ = pixels.shape
    mean_side = (width + height) / 2
    legend = _legend(width, max(MIN_LEGEND_PX, round(LEGEND_HEIGHT * mean_side)), crack_map)
    shown = np.concatenate([pixels, np.asarray(legend)])
    # Where there is a line, and in tiles to review, a shade would hide what a person must judge.
    is_shaded = (crack_map.tiles["label"] == "crack") & ~crack_map.tiles["has_line"]
    for left, top, right, bottom in _boxes(crack_map, is_shaded):
        tile = np.s_[top : bottom + 1, left : right + 1]
        shown[tile] = (1 - OPACITY) * pixels[tile] + OPACITY * np.array(ImageColor.getrgb(MARKS["crack"]))
    picture = Image.fromarray(shown)
    draw = ImageDraw.Draw(picture)
    for label in ("review", "crack"):
        for box in _boxes(crack_map, crack_map.tiles["label"] == label):
            line_px = (box[2] - box[0]) // (64 if label == "crack" else 128)
            draw.rectangle(box, outline=MARKS[label], width=max(1, line_px))
    _draw_lines(picture, crack_map, max(1, round(OUTLINE_WIDTH * mean_side)))
    picture.paste(legend, (0, height))  # over the outlines of lines that reach it
    return picture


def _draw_lines(picture: Image.Image, crack_map: CrackMap, outline_px: int) -> None:
    """Draw the crack lines, each as an outline, as far from its crack as it is wide."""
    drawn = list(zip(crack_map.lines, crack_map.cracks, strict=True))
    for stroke in dict.fromkeys(crack.stroke for crack in crack_map.cracks):
        mask = Image.new("1", picture.size)  # which pastes ten times as fast as shades of grey
        draw = ImageDraw.Draw(mask)
        for n_widths, fill in ((4, 255), (2, 0)):  # the outline with all inside it, then what is inside it
            for line, crack in drawn:
                if crack.stroke == stroke:
                    width_px = round(crack.width_p95_px) + n_widths * outline_px
                    draw.line(line.points.ravel().tolist(), fill, width_px, joint="curve")
        picture.paste(stroke, mask=mask)


def _boxes(crack_map: CrackMap, chosen: "pd.Series[bool]") -> list[tuple[int, int, int, int]]:
    tiles = crack_map.tiles.loc[chosen, ["x", "y", "size"]].to_numpy().tolist()
    return [(left, top, left + size - 1, top + size - 1) for left, top, size in tiles]


def _legend(width: int, height: int, crack_map: CrackMap) -> Image.Image:
    """Return the legend: tiles and the third note, the first note, which is the longest, lines and the second note."""
    legend = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(legend)
    line = height // N_LEGEND_LINES
    font = ImageFont.load_default(line * 0.62)
    pad, side = line // 2, round(line * 0.6)
    notes = crack_map.notes()
    by_width = sorted(crack_map.cracks, key=lambda crack: crack.width_p95_px)
    lines = {crack.width_class or "crack line": crack.stroke for crack in by_width}
    rows: tuple[tuple[dict[str, str], int, str], ...] = (
        ({"cracked tile": MARKS["crack"], "to review": MARKS["review"]}, side, notes[2]),
        ({}, 0, notes[0]),
        (lines, side // 4, notes[1]),
    )
    for number, (marks, mark_height, text) in enumerate(rows):
        x, middle = pad, number * line + line // 2
        for meaning, colour in marks.items():
            top = middle - mark_height // 2
            draw.rectangle((x, top, x + side, top + mark_height), outline=colour, width=max(1, side // 10))
            x += side + pad // 2
            draw.text((x, middle), meaning, INK, font, anchor="lm")
            x += round(draw.textlength(meaning, font)) + 2 * pad
        while text and draw.textlength(text, font) > width - x - pad:
            text = text.rstrip(" …")[:-1] + "…" if len(text) > 1 else ""
        draw.text((x, middle), text, INK, font, anchor="lm")
    return legend
