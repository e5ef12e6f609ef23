"""Photos of drawn concrete with cracks whose courses are known."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from shapely.geometry import LineString

STEP_PX, JITTER_PX = 12, 3


def cracked_photo(height, width, courses, level, crack_px):
    """Return grainy concrete, (height, width, 3), with a jagged crack along each course, and the cracks as drawn."""
    rng = np.random.default_rng(3)
    grain = Image.fromarray(rng.normal(level, 30, (height, width)).clip(0, 255).astype(np.uint8))
    grey, drawn = grain.filter(ImageFilter.GaussianBlur(1.5)), []
    for course in map(LineString, courses):
        places = [course.interpolate(distance) for distance in np.arange(0, course.length, STEP_PX)]
        points = [(place.x + rng.normal(0, JITTER_PX), place.y + rng.normal(0, JITTER_PX)) for place in places]
        ImageDraw.Draw(grey).line(points, max(0, level - 80), width=crack_px, joint="curve")
        drawn.append(LineString(points))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(0.7)).convert("RGB")), drawn
