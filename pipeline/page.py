"""Templates, plots and filters of the HTML pages. Each page is one file without scripts that opens offline."""

import base64
import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from cycler import cycler
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.safe_text import printable

MAX_SHOWN_CHARACTERS = 200  # of a text from outside, such as a path

# Matplotlib does not support CSS variables: it draws in these placeholders, which `svg` replaces with variables.
DASHES = {"series-0": (), "series-1": (4, 2), "series-2": (6, 2, 1, 2), "series-3": (1, 1.5), "series-4": (9, 3)}
COLOURS = {name: f"#0000{index:02x}" for index, name in enumerate(["text", "muted", "line", *DASHES], start=1)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": COLOURS["text"],
    "axes.labelcolor": COLOURS["text"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": cycler(
        color=[COLOURS[name] for name in DASHES],
        linestyle=[(0, dashes) if dashes else "-" for dashes in DASHES.values()],
    ),
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
}


def template(name: str) -> Template:
    """Return a Jinja template of this package, with the filters number, shown and jpeg."""
    environment = Environment(
        loader=PackageLoader("pipeline", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "shown": shown, "jpeg": _jpeg}
    return environment.get_template(name)


def svg(name: str, draw: Callable[[Axes], None], size_inches: tuple[float, float] = (4.0, 3.3)) -> Markup:
    """Return a plot as inline SVG in the colours and the font of the page; `name` must be unique on the page."""
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(size_inches, layout="constrained")
        draw(figure.subplots())
        content = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=no_metadata)
    drawn = content.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)  # these ids do not depend on the salt
    for colour, placeholder in COLOURS.items():
        drawn = drawn.replace(placeholder, f"var(--{colour})")
    return Markup(drawn)  # noqa: S704 - Matplotlib has escaped all text


def _number(value: float | None) -> str:
    """Format a count, or a score with four to seven decimals, so many that it is not rounded to 0 or 1."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return f"{value:,}"
    distance = min(value, 1 - value)
    if 0 < distance < 1e-7:
        return "<0.0000001" if value < 0.5 else ">0.9999999"
    decimals = max(4, math.ceil(-math.log10(distance))) if distance > 0 else 4
    return f"{value:.{decimals}f}"


def shown(text: str, max_characters: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return a text from outside on one line, printable and without the middle of a long text."""
    if len(text) > max_characters:
        half = max_characters // 2
        text = f"{text[:half]} … {text[-half:]}"
    return printable(text)


def _jpeg(pixels: npt.NDArray[np.uint8], size_px: int, quality: int) -> str:
    """Return RGB pixels, (height, width, 3), as a JPEG data URI, at most `size_px` a side; quality 0..95."""
    image = Image.fromarray(pixels)
    image.thumbnail((size_px, size_px))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
