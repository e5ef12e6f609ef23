"""The diagram of a network, drawn from the blocks that `pipeline.evaluation.model_architecture` returns."""

from collections.abc import Sequence
from math import log2
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:  # finding the blocks needs TensorFlow, drawing them does not
    from pipeline.evaluation.model_architecture import Block

WIDTH, ROW_HEIGHT = 500, 58  # SVG units, about pixels
CENTRE, TEXT_FROM, MAX_BLOCK = 65, 145, 120


def _numbers(block: "Block") -> str:
    shape = " x ".join("any" if size is None else str(size) for size in block["shape"])
    return f"{shape}; {block['n_weights']:,} weights" if block["n_weights"] else shape


def _draw_block(block: "Block", row: int, largest: int) -> Markup:
    """Return a block as SVG; its width grows with the size of its output, its height with the number of channels."""
    size = max((side or largest for side in block["shape"][:-1]), default=0)
    width = max(14.0, MAX_BLOCK * log2(1 + size) / log2(1 + largest))
    height = 4 + 4 * log2(block["shape"][-1] or 1)
    top, middle = row * ROW_HEIGHT, row * ROW_HEIGHT + ROW_HEIGHT / 2
    colour = f"var(--series-{0 if block['is_nested'] else 1})" if block["n_weights"] else "var(--line)"
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="4" fill="{}"/>'
        '<text x="{}" y="{:.0f}" font-size="13" font-weight="600" fill="var(--text)">{}'
        '<tspan x="{}" dy="16" font-weight="400" fill="var(--text)">{}</tspan>'
        '<tspan x="{}" dy="14" font-size="11" font-weight="400" fill="var(--muted)">{}</tspan></text>'
    ).format(
        CENTRE - width / 2, middle - height / 2, width, height, colour,
        TEXT_FROM, top + 18, block["title"], TEXT_FROM, _numbers(block), TEXT_FROM, block["detail"],
    )  # fmt: skip


def architecture_diagram(blocks: Sequence["Block"]) -> Markup:
    """Return the blocks of a model from top to bottom, as inline SVG in the colours of the page."""
    largest = max((side or 1 for block in blocks for side in block["shape"][:-1]), default=1)
    rows = Markup("").join(_draw_block(block, row, max(2, largest)) for row, block in enumerate(blocks))
    # From the first block to the last behind all of them, so that it meets each of them whatever their heights.
    connector = Markup('<path d="M{} {:.0f}v{}" stroke="var(--muted)"/>').format(
        CENTRE, ROW_HEIGHT / 2, (len(blocks) - 1) * ROW_HEIGHT
    )
    return Markup('<svg viewBox="0 0 {} {}">{}{}</svg>').format(WIDTH, len(blocks) * ROW_HEIGHT, connector, rows)
