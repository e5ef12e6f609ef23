"""Draws a crack map: the photo with cracks shaded and framed, outlines of tiles to review, and a legend below."""

from PIL import Image, ImageDraw, ImageFont

from pipeline.crack_maps.crack_map import CrackMap
from pipeline.data.images import Pixels

OPACITY = 0.25  # of the shade over cracks
MARKS = {"crack": (220, 20, 20), "review": (40, 110, 255)}
LEGEND_HEIGHT = 0.05  # of the photo's mean side
MIN_LEGEND_PX = 36
PAPER, INK = (255, 255, 255), (30, 30, 30)


def overlay_picture(pixels: Pixels, crack_map: CrackMap) -> Image.Image:
    """Return the upright photo, uint8 (height, width, 3), with marks, and a legend with the first caveats below it."""
    height, width, _ = pixels.shape
    legend = _legend(width, max(MIN_LEGEND_PX, round(LEGEND_HEIGHT * (width + height) / 2)), crack_map.notes())
    picture = Image.new("RGB", (width, height + legend.height), PAPER)
    picture.paste(Image.fromarray(pixels))
    draw, shade = ImageDraw.Draw(picture), Image.new("L", picture.size)
    boxes = {label: _boxes(crack_map, label) for label in MARKS}
    # Only cracks are shaded: a shade would hide what a person must judge in the other tiles.
    for box in boxes["crack"]:
        ImageDraw.Draw(shade).rectangle(box, fill=round(255 * OPACITY))
    picture.paste(MARKS["crack"], mask=shade)
    for label in ("review", "crack"):
        for box in boxes[label]:
            line_px = (box[2] - box[0]) // (64 if label == "crack" else 128)
            draw.rectangle(box, outline=MARKS[label], width=max(1, line_px))
    picture.paste(legend, (0, height))
    return picture


def _boxes(crack_map: CrackMap, label: str) -> list[tuple[int, int, int, int]]:
    tiles = crack_map.tiles.loc[crack_map.tiles["label"] == label, ["x", "y", "size"]].to_numpy().tolist()
    return [(left, top, left + size - 1, top + size - 1) for left, top, size in tiles]


def _legend(width: int, height: int, notes: list[str]) -> Image.Image:
    """Return the legend, two lines: the marks and the second note, then the first one, which is the longer."""
    legend = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(legend)
    line = height // 2
    font = ImageFont.load_default(line * 0.62)
    pad, middle = line // 2, line // 2
    x = pad
    for label, meaning in (("crack", "crack"), ("review", "to review")):
        side = round(line * 0.6)
        top = middle - side // 2
        draw.rectangle((x, top, x + side, top + side), outline=MARKS[label], width=max(1, side // 10))
        x += side + pad // 2
        draw.text((x, middle), meaning, INK, font, anchor="lm")
        x += round(draw.textlength(meaning, font)) + 2 * pad
    for left, y, text in ((x, middle, notes[1]), (pad, line + middle, notes[0])):
        while text and draw.textlength(text, font) > width - left - pad:
            text = text.rstrip(" …")[:-1] + "…" if len(text) > 1 else ""
        draw.text((left, y), text, INK, font, anchor="lm")
    return legend
