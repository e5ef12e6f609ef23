"""Draws a crack map: the photo with cracks shaded and framed, outlines of tiles to review, and a legend below."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.crack_maps.crack_map import CELL_PX, CrackMap
from pipeline.data.images import Pixels

# (probability, opacity, red, green, blue): from clear to opaque, from yellow to red.
RAMP = ((0.15, 0.0, 255, 224, 70), (0.5, 0.25, 255, 150, 20), (1.0, 0.4, 230, 20, 20))
MARKS = {"crack": (220, 20, 20), "review": (40, 110, 255)}
LEGEND_HEIGHT = 0.05  # of the photo's mean side
MIN_LEGEND_PX = 36
PAPER, INK = (255, 255, 255), (30, 30, 30)

Colours = npt.NDArray[np.uint8]  # (..., 4), RGBA


def overlay_picture(pixels: Pixels, crack_map: CrackMap, caption: str) -> Image.Image:
    """Return the upright photo, uint8 (height, width, 3), with overlay, marks and a legend that ends with `caption`."""
    height, width, _ = pixels.shape
    legend = _legend(width, max(MIN_LEGEND_PX, round(LEGEND_HEIGHT * (width + height) / 2)), caption)
    picture = Image.new("RGB", (width, height + legend.height), PAPER)
    picture.paste(Image.fromarray(pixels))
    # Only cracks are shaded: a shade would hide what a person must judge in the other tiles.
    is_crack = crack_map.tiles["label"] == "crack"
    overlay = colours(crack_map.raster(crack_map.tiles["probability"].where(is_crack, 0.0).to_numpy()))
    # a multiple of the cell size; the last cells exceed the photo
    size = overlay.shape[1] * CELL_PX, overlay.shape[0] * CELL_PX
    shade = Image.fromarray(overlay).resize(size, Image.Resampling.NEAREST).crop((0, 0, width, height))
    picture.paste(shade, mask=shade)
    _draw_marks(ImageDraw.Draw(picture), crack_map)
    picture.paste(legend, (0, height))
    return picture


def colours(probabilities: npt.NDArray[np.float64]) -> Colours:
    """Return the colour of the overlay at each probability 0..1, uint8 RGBA, shape (..., 4)."""
    stops = np.array(RAMP)
    opacity, *rgb = [np.interp(probabilities, stops[:, 0], stops[:, column]) for column in range(1, 5)]
    return np.stack([*rgb, 255 * opacity], axis=-1).round().astype(np.uint8)


def _draw_marks(draw: ImageDraw.ImageDraw, crack_map: CrackMap) -> None:
    """Frame cracks, and tiles to review with a thinner line."""
    for label in ("review", "crack"):
        of_label = crack_map.tiles["label"] == label
        for left, top, size in crack_map.tiles.loc[of_label, ["x", "y", "size"]].to_numpy().tolist():
            _mark(draw, label, left, top, size, max(1, size // (64 if label == "crack" else 128)))


def _mark(draw: ImageDraw.ImageDraw, label: str, left: int, top: int, size: int, line_px: int) -> None:
    draw.rectangle((left, top, left + size - 1, top + size - 1), outline=MARKS[label], width=line_px)


def _legend(width: int, height: int, caption: str) -> Image.Image:
    """Return the legend, two lines: scale and marks, then the caption."""
    legend = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(legend)
    line = height // 2
    font = ImageFont.load_default(line * 0.62)
    pad, middle = line // 2, line // 2
    draw.text((pad, middle), "probability of a crack  0 %", INK, font, anchor="lm")
    x = pad + round(draw.textlength("probability of a crack  0 % ", font))
    bar = min(width // 6, 12 * line)
    ramp = colours(np.linspace(0, 1, bar))  # (bar, 4)
    grey = np.full((bar, 3), 170)
    share = ramp[:, 3:] / 255
    shown = (grey * (1 - share) + ramp[:, :3] * share).astype(np.uint8)  # as it appears over concrete
    legend.paste(Image.fromarray(np.repeat(shown[None], round(line * 0.6), axis=0)), (x, round(line * 0.2)))
    x += bar + pad // 2
    draw.text((x, middle), "100 %", INK, font, anchor="lm")
    x += round(draw.textlength("100 %", font)) + 2 * pad
    for label, meaning in (("crack", "crack"), ("review", "to review")):
        side = round(line * 0.6)
        _mark(draw, label, x, middle - side // 2, side, max(1, side // 10))
        x += side + pad // 2
        draw.text((x, middle), meaning, INK, font, anchor="lm")
        x += round(draw.textlength(meaning, font)) + 2 * pad
    while caption and draw.textlength(caption, font) > width - 2 * pad:
        caption = caption.rstrip(" …")[:-1] + "…"
    draw.text((pad, line + middle), caption, INK, font, anchor="lm")
    return legend
