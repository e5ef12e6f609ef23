"""What the pages that a person reads share: each is one HTML file without scripts that opens offline."""

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

PLOT_SIZE_INCHES = (4.0, 3.3)
MAX_SHOWN_CHARACTERS = 200  # of a text from outside: a path of 4,000 would bury its neighbours

# Matplotlib knows no CSS variables: it draws in these stand-ins, and the page puts its own light or dark colours there.
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
    """Return a template of this package, with the filters number, shown and jpeg, which extends page.html.j2."""
    environment = Environment(
        loader=PackageLoader("pipeline", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "shown": _shown, "jpeg": _jpeg}
    return environment.get_template(name)


def svg(name: str, draw: Callable[[Axes], None], size_inches: tuple[float, float] = PLOT_SIZE_INCHES) -> Markup:
    """Return a plot as inline SVG in the colours and the font of the page; each name is used once on a page."""
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(size_inches, layout="constrained")
        draw(figure.subplots())
        content = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=no_metadata)
    drawn = content.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)  # these ids do not depend on the salt
    for colour, stand_in in COLOURS.items():
        drawn = drawn.replace(stand_in, f"var(--{colour})")
    return Markup(drawn)  # noqa: S704 - Matplotlib has escaped all text


def _number(value: float | None) -> str:
    """Format a count, or a score with as many decimals, four to seven, as keep it apart from 0 and 1."""
    if value is None:
        return "—"
    if isinstance(value, int):
        return f"{value:,}"
    distance = min(value, 1 - value)
    if 0 < distance < 1e-7:
        return "<0.0000001" if value < 0.5 else ">0.9999999"
    decimals = max(4, math.ceil(-math.log10(distance))) if distance > 0 else 4
    return f"{value:.{decimals}f}"


def _shown(text: str) -> str:
    """Return a text from outside on one line: what cannot be seen is escaped, of a long one the middle is left out.

    What cannot be seen is, for instance, a line break, a mark that turns the direction of reading, or a byte of a file
    name that is no UTF-8 and could not be written.
    """
    if len(text) > MAX_SHOWN_CHARACTERS:
        half = MAX_SHOWN_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _jpeg(pixels: npt.NDArray[np.uint8], size_px: int, quality: int) -> str:
    """Return RGB pixels, (height, width, 3), the longer side at most `size_px`, as a data URI; quality 0..95."""
    image = Image.fromarray(pixels)
    image.thumbnail((size_px, size_px))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
