"""Every page that is written, with awkward contents, in a real browser: at no width does it overflow or clip."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor
from test_contract_page import BALANCED, BROKEN, DARK, drawn_inventory, group, page_of, tile
from test_drift import MONITOR, photos
from test_report_page import DECISION, drawn_picture, drawn_predictions, facts, inputs, score

from pipeline.crack_lines.crack_line import CrackLine
from pipeline.crack_maps.crack_properties import NO_CLASS_COLOUR, UNDER_PX, colours, properties_of
from pipeline.crack_maps.line_files import FoundCracks, geojson
from pipeline.crack_maps.map_page import render_maps
from pipeline.data.contract import Rule
from pipeline.data.contract_page import SuspectLabels
from pipeline.evaluation.report_page import render
from pipeline.evaluation.slices import slice_table
from pipeline.evaluation.unseen_sources import summarise_sources
from pipeline.models.decision import Decision
from pipeline.monitoring.drift import compare
from pipeline.monitoring.drift_check import render_drift
from pipeline.params import Map

pytestmark = pytest.mark.slow
WIDTHS_PX = (360, 768, 1280, 1920)
LONG = "a-name-without-a-space-" * 6  # 138 characters
CORRECTION = {"assumed_prevalence": 0.5, "prevalence": 0.123}
SENTENCE = "The reason is told in a sentence that takes more than a line of the table that it stands in. " * 2

# What sticks out of the page, can only be scrolled to or is cut off, in words.
OVERFLOWS = """() => {
    const page = document.documentElement, found = [];
    const name = (one) => `${one.tagName} "${one.textContent.trim().slice(0, 30)}"`;
    if (page.scrollWidth > page.clientWidth) found.push(`the page is ${page.scrollWidth} px wide`);
    for (const one of document.querySelectorAll("body *")) {
        const right = one.getBoundingClientRect().right, section = one.closest("section, header");
        if (one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX !== "visible" && !one.closest("svg"))
            found.push(`${name(one)} is clipped`);
        if (section && right > section.getBoundingClientRect().right + 1) found.push(`${name(one)} sticks out`);
    }
    for (const text of document.querySelectorAll("svg text")) {
        const box = text.getBoundingClientRect(), plot = text.closest("svg").getBoundingClientRect();
        if (box.left < plot.left - 2 || box.right > plot.right + 2) found.push(`${name(text)} is cut off`);
    }
    return found;
}"""


def report(tmp_path):
    """Ten data sets, one of a long name, scores of many digits, a long surface, a deep network."""
    rng = np.random.default_rng(5)
    given = inputs()
    names = ["halls", "walls", LONG] + [f"bridges-{number}" for number in range(6)]
    more = [drawn_predictions(rng, LONG, "test", 60, 4.0).assign(slice=LONG)]
    more += [drawn_predictions(rng, name, "external", 120, 2.5) for name in names[3:]]
    predictions = pd.concat([given["predictions"], *more], ignore_index=True)
    long_scores = score(more[0]) | {"accuracy": 1 - 1e-9, "f1": 0.999999, "ece": 1e-9, "precision": 0.9999993}
    long_scores["interval"] |= {"f1": {"low": 0.999991, "high": 0.9999999}, "ece": {"low": 0.0, "high": 1e-9}}
    given["metrics"]["candidate"] = LONG
    given["metrics"]["trained_on"] = names[:3]
    given["metrics"]["tests"] |= {LONG: long_scores}
    given["metrics"]["external"] |= {name: score(rows) for name, rows in zip(names[3:], more[1:], strict=True)}
    left_out = {"scores": {f"{LONG}/{LONG}": long_scores}, "not_measured": {LONG: SENTENCE}}
    given["metrics"]["sources"] = summarise_sources(left_out, given["metrics"]["external"])
    given["candidates"] |= {LONG: long_scores | {"selection_loss": 0.0000123}}
    given["histories"] |= {LONG: given["histories"]["finetune-lite0"], "probe": two_heads(given["histories"])}
    slices = slice_table(predictions, Decision(**DECISION))
    many = {"n": 123_456, "n_groups": 98_765}
    pictures = [drawn_picture(rng, f"{LONG}/{LONG}.jpg", label, 1e-9) for label in ("crack", "intact")]
    given |= {
        "slices": pd.concat([slices, slices.tail(1).assign(**many, photo=LONG, f1=0.9999993, f1_low=0.9999991)]),
        "mistakes": {"Test": [replace(picture, overlay=picture.pixels) for picture in pictures]},
        "samples": {"halls": pictures},
        "architecture": [layer("image", 0), layer(LONG[:40], 4_000_000, [layer(LONG, 4_000_000)])],
        "datasets": [facts(name, is_trained_on=name in names[:3], train=1_234_567, test=123_456) for name in names],
        "weights": LONG,
    }
    return render(**given | {"predictions": predictions})


def two_heads(histories):
    head = histories["probe-lite0"]
    return pd.concat([head.assign(phase="walls"), head.assign(phase=LONG)])


def layer(name, n_weights, layers=()):
    return {
        "name": name,
        "type": "GlobalAveragePooling2D",
        "shape": [None, 1280],
        "n_weights": n_weights,
        "layers": layers,
    }


def contract(tmp_path):
    """A broken contract: long paths, reasons and facts in every section."""
    rules = [BALANCED, DARK, BROKEN, Rule(SENTENCE, "fail", False, SENTENCE, (f"{LONG}/{LONG}.jpg",) * 10)]
    return page_of(
        name=LONG,
        is_drawn=True,
        facts={f"fact {number}": "123,456,789" for number in range(12)} | {LONG: LONG, "leak": "24.0 % of all"},
        rules=rules,
        violations={rule.text: [tile(f"{LONG}/{number}.jpg") for number in range(8)] for rule in rules[1:]},
        copy_groups=[group(["crack"] * 8), group(["crack", "intact"] * 4, 1234)],
        n_copy_groups=500,
        doubtful=[group(["crack", "intact"])] * 3,
        n_doubtful=500,
        suspects=SuspectLabels((tile(f"{LONG}/{LONG}.jpg", caption=SENTENCE, name="0" * 16),) * 9, (SENTENCE, LONG)),
        quarantine=pd.DataFrame({"batch": [LONG, "2"], "path": [f"{LONG}/{LONG}", "a"], "reason": [SENTENCE, LONG]}),
        inventory=drawn_inventory(),
    ).html


def split(tmp_path):
    """The page of the split, which is that of a contract without copies or quarantine."""
    return page_of(name="split", n_copy_groups=None, quarantine=None, inventory=drawn_inventory()).html


def drift(tmp_path):
    """A window that has drifted, the last of sixty."""
    reference, window = photos(0, 40), photos(1, 8, shift=9)
    comparison = compare(reference, window, MONITOR)
    first = datetime(2026, 3, 1, tzinfo=UTC)
    records = [
        {
            "end": (first + timedelta(weeks=week)).isoformat(),
            "scores": {"contrast": 1.5},
            "limit": 2.0,
            "verdict": verdict,
        }
        for week, verdict in enumerate(["no drift"] * 59 + ["drift"])
    ]
    return render_drift(comparison, reference, window, records, [SENTENCE, LONG], is_drawn=True)


def maps(tmp_path):
    """Three maps and two photos that could not be mapped, of long names."""
    rows = []
    for name in ("deck", "IMG_0001", LONG):
        Image.new("RGB", (640, 480), (120, 120, 120)).save(tmp_path / f"{name}.cracks.jpg")
        found = {
            "photo": f"/{LONG}/{LONG}/{name}.jpg",
            "share_cracked": 0.123,
            "n_crack": 1234,
            "n_review": 5,
            "n_undecided": 4_321,
            "n_tiles": 45_678,
            "n_lines": 1_234,
            "notes": [SENTENCE],
            "review": [{"x": 123_456, "y": 654_321, "probability": 0.5, "reason": "unlike the training images"}] * 30,
            "time": "2026-05-01T10:20:30",
            "place": {"latitude": 46.5, "longitude": 7.25},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
        rows.append(found | {"name": name, "error": ""})
    rows += [rows[0] | {"photo": f"{LONG}/{LONG}", "error": SENTENCE}] * 2
    params = Map(tile_px=256, overlap=0, model_mm_per_px=None)
    lines = [CrackLine(np.array([[10, 20], [600, 400]]), np.full(2, width), 1, 99, 0.5) for width in (1, 3, 9, 99, 999)]
    cracks = properties_of(lines, 123, params.width_classes)
    features = json.loads(geojson(lines, cracks, dict.fromkeys(("photo", "width", "height", "mm_per_px"))))["features"]
    lengths = dict.fromkeys((UNDER_PX, *colours(params.width_classes)), 1234567.0)
    widest = [(tmp_path / f"{LONG}.cracks.jpg", feature) for feature in features]
    found_cracks = FoundCracks({row["name"]: lengths for row in rows}, widest)
    model, missed = f"the model in /{LONG}/{LONG}", [SENTENCE] * 2
    return render_maps(tmp_path, pd.DataFrame(rows), model, missed, CORRECTION, found_cracks, params, 123)


@pytest.mark.parametrize("write", [report, contract, split, drift, maps])
def test_nothing_overflows_at_any_width(browser, tmp_path, write):
    path = tmp_path / "page.html"
    path.write_text(write(tmp_path), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    found = []
    for width in WIDTHS_PX:
        page.set_viewport_size({"width": width, "height": 900})
        found += [f"at {width} px {what}" for what in page.evaluate(OVERFLOWS)]
    page.close()
    assert found == []


def test_a_close_up_has_the_colour_of_its_width_class_along_the_crack_and_nothing_painted_inside(browser, tmp_path):
    page = browser.new_page()
    page.set_content(maps(tmp_path))
    drawn = page.locator("polyline").evaluate_all(
        "all => all.map(getComputedStyle).map((one) => [one.fill, one.stroke])"
    )
    page.close()
    of_class = colours(Map(tile_px=256, overlap=0, model_mm_per_px=None).width_classes)
    strokes = [NO_CLASS_COLOUR, *4 * [of_class["over 0.41 mm"]]]  # at 123 mm a pixel; the first is under 2 px
    assert drawn == [["none", f"rgb{ImageColor.getrgb(stroke)}"] for stroke in strokes]
