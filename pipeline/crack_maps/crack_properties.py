"""What is said of a crack line in files, in answers of the API and on pages: length, width and width class."""

import colorsys
from collections.abc import Sequence

from pydantic import BaseModel, Field

from pipeline.crack_lines.crack_line import CrackLine

MEASURED_FROM_PX = 2.0  # a thinner crack is about as wide as the blur of the photo, whatever its width
UNDER_PX = f"under {MEASURED_FROM_PX:g} px"
NO_CLASS_COLOUR = "#00c8ff"  # of cracks without a class, or too thin for one
NARROWEST_HUE, WIDEST_HUE = 60, -85  # yellow by red to violet, in degrees: none looks like concrete, none is green

WidthClasses = Sequence[tuple[float, str]]  # upper limit in mm, and what it stands for


class CrackProperties(BaseModel):
    """A crack line in numbers and in words; null is what is not known without a scale."""

    id: int = Field(description="1 is the longest crack of the photo")
    length_px: float
    width_px: float = Field(description="median; below 2 px it is no more than an estimate")
    width_low_px: float = Field(description="lower end of the 90 % interval of the median, by drawn cracks")
    width_high_px: float = Field(description="upper end of it")
    width_p95_px: float = Field(description="95th percentile along the crack")
    length_mm: float | None
    width_mm: float | None = Field(description="median; null below 2 px")
    width_p95_mm: float | None = Field(description="null below 2 px")
    length: str = Field(description="for people, with its unit")
    width: str = Field(description="for people: the median with its 90 % interval, or `under 2 px`")
    width_p95: str = Field(description="for people: the 95th percentile")
    width_class: str | None = Field(description="by the 95th percentile, a guide; null without a scale")
    confidence: float = Field(ge=0, le=1)
    stroke: str = Field(description="colour in which the crack is drawn, that of its class")


def properties_of(lines: Sequence[CrackLine], mm_per_px: float | None, classes: WidthClasses) -> list[CrackProperties]:
    """Return what is said of each line; `mm_per_px` is the ground resolution of the photo, None if unknown."""
    return [_properties(number, line, mm_per_px, classes) for number, line in enumerate(lines, start=1)]


def _properties(number: int, line: CrackLine, mm_per_px: float | None, classes: WidthClasses) -> CrackProperties:
    width, p95, length = line.median_width_px, line.p95_width_px, line.length_px

    def in_mm(pixels: float, at_least: float = MEASURED_FROM_PX) -> float | None:
        return None if mm_per_px is None or pixels < at_least else round(pixels * mm_per_px, 3)

    width_class = None if mm_per_px is None else class_of(p95, mm_per_px, classes)
    return CrackProperties(
        id=number,
        length_px=round(length, 1),
        width_px=round(width, 2),
        width_low_px=round(line.width_low_px, 2),
        width_high_px=round(line.width_high_px, 2),
        width_p95_px=round(p95, 2),
        length_mm=in_mm(length, 0),
        width_mm=in_mm(width),
        width_p95_mm=in_mm(p95),
        length=length_text(length, mm_per_px),
        width=width_text(width, mm_per_px) + _interval_text(line, mm_per_px),
        width_p95=width_text(p95, mm_per_px),
        width_class=width_class,
        confidence=round(line.confidence, 3),
        stroke=colours(classes).get(width_class or "", NO_CLASS_COLOUR),
    )


def class_of(p95_width_px: float, mm_per_px: float, classes: WidthClasses) -> str:
    """Return the width class of a crack by the 95th percentile of its width.

    A crack under 2 px has no class: it may be of any that begins below that.
    """
    if p95_width_px < MEASURED_FROM_PX:
        return UNDER_PX
    width_mm = round(p95_width_px * mm_per_px, 6)  # 3 px of 0.1 mm are 0.3 mm, and no more
    return next((_up_to(limit) for limit, _ in classes if width_mm <= limit), _over(classes))


def colours(classes: WidthClasses) -> dict[str, str]:
    """Return the colour of each width class as #rrggbb, the narrowest class first."""
    names = [*(_up_to(limit) for limit, _ in classes), _over(classes)]
    hues = (NARROWEST_HUE + (WIDEST_HUE - NARROWEST_HUE) * n / (len(names) - 1) for n in range(len(names)))
    shades = [colorsys.hsv_to_rgb(hue % 360 / 360, 1, 1) for hue in hues]
    drawn = ("#" + "".join(f"{round(255 * part):02x}" for part in shade) for shade in shades)
    return dict(zip(names, drawn, strict=True))


def length_text(length_px: float, mm_per_px: float | None) -> str:
    """Return a length for people: in m or mm, or in pixels without a scale."""
    if mm_per_px is None:
        return f"{length_px:,.0f} px"
    length_mm = length_px * mm_per_px
    return f"{length_mm / 1000:,.2f} m" if length_mm >= 1000 else f"{length_mm:.0f} mm"


def width_text(width_px: float, mm_per_px: float | None) -> str:
    """Return a width for people: in mm, or in pixels without a scale."""
    if width_px < MEASURED_FROM_PX:
        return UNDER_PX if mm_per_px is None else f"{UNDER_PX} ({MEASURED_FROM_PX * mm_per_px:.2f} mm)"
    return f"{width_px:.1f} px" if mm_per_px is None else f"{width_px * mm_per_px:.2f} mm"


def _interval_text(line: CrackLine, mm_per_px: float | None) -> str:
    if line.median_width_px < MEASURED_FROM_PX:
        return ""
    scale, decimals = (1.0, 1) if mm_per_px is None else (mm_per_px, 2)
    return f" ({line.width_low_px * scale:.{decimals}f} to {line.width_high_px * scale:.{decimals}f})"


def _up_to(limit_mm: float) -> str:
    return f"up to {limit_mm:g} mm"


def _over(classes: WidthClasses) -> str:
    return f"over {classes[-1][0]:g} mm"
