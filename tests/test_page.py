"""The page in a real browser: photos are mapped, tiles and crack lines reviewed, labels exported and ingested."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from api_server import Server
from archive_writer import limits
from cracked_photos import cracked_photo
from PIL import Image, ImageColor
from shapely.geometry import shape
from tiny_model import write_tiny_model

from pipeline.crack_maps.crack_properties import colours
from pipeline.crack_maps.map_files import run
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.images import INVENTORY_FILE
from pipeline.params import Dataset, Map
from pipeline.registry.model_lookup import found_model

pytestmark = pytest.mark.slow
LEVELS = {"crack": 60, "review": 120, "intact": 200}  # grey levels and what the tiny model makes of them
SIZE_PX = 256


def photo(path, labels, mode="RGB"):
    """Write a photo of plain tiles, a row of labels a row of tiles; no two tiles are quite the same."""
    levels = [[LEVELS[label] + 2 * col + row for col, label in enumerate(line)] for row, line in enumerate(labels)]
    pixels = np.array(levels, np.uint8).repeat(SIZE_PX, axis=0).repeat(SIZE_PX, axis=1)
    Image.fromarray(pixels).convert(mode).save(path)
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    write_tiny_model(root / "starter")
    return root


@pytest.fixture(scope="module")
def server(root):
    with Server(root / "server", starter=root / "starter") as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1300, "height": 850})
    page = context.new_page()
    page.set_default_timeout(20_000)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    page.complaints = complaints
    yield page
    context.close()


@pytest.fixture
def deck(tmp_path):
    return photo(tmp_path / "deck.png", [["crack", "review", "intact"], ["intact", "review", "review"]])


@pytest.fixture
def cracked(tmp_path):
    """A photo of concrete, 768 x 512 px, of which the model is unsure everywhere, and the courses of its two cracks."""
    courses = [(40, 240), (250, 270), (560, 230)], [(680, 60), (690, 260), (675, 460)]
    pixels, cracks = cracked_photo(512, 768, courses, level=120, crack_px=5)
    Image.fromarray(pixels).save(tmp_path / "cracked.png")
    return str(tmp_path / "cracked.png"), cracks


def drop(page, path):
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            return transfer;
        }""",
        [Path(path).name, list(Path(path).read_bytes())],
    )
    page.dispatch_event("#empty", "drop", {"dataTransfer": transfer})
    page.locator("[data-state=done]").wait_for()


def add(page, *paths):
    page.set_input_files("#files", list(paths))
    page.locator("[data-state=done]").nth(len(paths) - 1).wait_for()


def words(page, selector):
    return page.locator(selector).inner_text()


def test_an_inspector_drops_a_photo_reviews_it_and_the_labels_are_trained_on(page, deck, tmp_path):
    drop(page, deck)
    assert words(page, ".photo .state") == words(page, "#summary") == "1 of 6 tiles marked, 3 to review"
    assert page.locator(".tile").count() == 3
    assert page.locator(".tile .verdict-label").all_inner_texts() == ["unsure"] * 3

    page.keyboard.press("ArrowDown")
    for key in "cxc":
        page.keyboard.press(key)
    assert page.locator(".tile .verdict-label").all_inner_texts() == ["crack", "intact", "crack"]
    assert words(page, ".photo .state") == words(page, "#summary") == "1 of 6 tiles marked"
    page.keyboard.press("u")
    assert words(page, "#export-button") == "Export 2 labels"

    page.click("#export-button")  # without a name: the browser asks for it, nothing is sent
    assert page.evaluate("document.activeElement.id") == "reviewer"
    page.fill("#reviewer", "A. Reviewer")
    with page.expect_download() as download:
        page.click("#export-button")
    batch = tmp_path / download.value.suggested_filename
    download.value.save_as(batch)
    assert words(page, "#export-text") == f"2 labels saved as {batch.name}."
    assert page.locator("#export-button").is_disabled()
    assert page.complaints == []

    pack_dataset(Dataset(source=batch), limits(), tmp_path / "ingested")
    inventory = pd.read_parquet(tmp_path / "ingested" / INVENTORY_FILE).sort_values("brightness")
    assert inventory["label"].tolist() == ["crack", "intact"]
    assert inventory["brightness"].tolist() == pytest.approx([LEVELS["review"] + 2, LEVELS["review"] + 3])
    assert inventory["reviewer"].tolist() == ["A. Reviewer"] * 2
    assert inventory["photo"].tolist() == ["deck.png"] * 2


def on_screen(page, x, y):
    """Return where on the screen a place of a photo of 768 x 512 px is, which fills the canvas."""
    box = page.locator("#canvas").bounding_box()
    scale = min(box["width"] / 768, box["height"] / 512)
    return box["x"] + box["width"] / 2 + (x - 384) * scale, box["y"] + box["height"] / 2 + (y - 256) * scale


def middle_of(crack):
    place = crack.interpolate(0.5, normalized=True)
    return place.x, place.y


def test_an_inspector_drops_a_photo_sees_its_crack_lines_rejects_one_and_the_decisions_are_exported(
    page, cracked, tmp_path
):
    path, cracks = cracked
    drop(page, path)
    n_lines = int(words(page, "#summary").split(" crack lines, ")[0])
    assert n_lines >= 2
    assert words(page, "#legend-lines") == "crack line"
    for crack, key in zip(cracks, "cx", strict=True):
        page.keyboard.press("0")
        page.mouse.click(*on_screen(page, *middle_of(crack)))
        assert words(page, "#numbers").startswith("Crack ")
        assert " px, width " in words(page, "#numbers")
        assert page.locator(".line[aria-selected=true]").count() == 1
        page.keyboard.press(key)
    assert page.locator(".line").count() == n_lines
    assert sorted(filter(None, page.locator(".line .verdict-label").all_inner_texts())) == ["accepted", "rejected"]
    assert words(page, "#summary").startswith(f"{n_lines - 1} crack line")
    page.fill("#scale", "0.1")
    page.keyboard.press("Tab")
    page.get_by_text("over 0.41 mm").first.wait_for()
    labels = page.locator(".line .verdict-label").all_inner_texts()
    assert {"accepted", "rejected"} < set(labels)  # which holds for the new map, beside the width classes
    page.select_option("#filter", "review")
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("c")  # and a tile

    page.fill("#reviewer", "A. Reviewer")
    with page.expect_download() as download:
        page.click("#export-button")
    download.value.save_as(tmp_path / "batch.zip")
    assert words(page, "#export-text") == f"3 labels saved as {download.value.suggested_filename}."
    with zipfile.ZipFile(tmp_path / "batch.zip") as archive:
        lines = json.loads(archive.read("lines.geojson"))["features"]
    decided = {line["properties"]["decision"]: shape(line["geometry"]) for line in lines}
    for crack, decision in zip(cracks, ("accepted", "rejected"), strict=True):
        assert crack.buffer(6).contains(decided[decision])
        assert decided[decision].length > 100
    assert {line["properties"]["photo"] for line in lines} == {"cracked.png"}
    assert {line["properties"]["reviewer"] for line in lines} == {"A. Reviewer"}
    pack_dataset(Dataset(source=tmp_path / "batch.zip"), limits(), tmp_path / "ingested")
    assert pd.read_parquet(tmp_path / "ingested" / INVENTORY_FILE)["label"].tolist() == ["crack"]  # of the tile
    assert page.complaints == []


def test_a_line_is_drawn_beside_its_crack_in_the_colour_of_its_class_and_can_be_taken_away(page, cracked):
    path, cracks = cracked
    add(page, path)
    page.fill("#scale", "0.1")
    page.keyboard.press("Tab")
    page.get_by_text("over 0.41 mm").first.wait_for()
    page.keyboard.press("m")  # without the tiles
    box = page.locator("#canvas").bounding_box()

    def share(x, y):
        left, top = on_screen(page, x, y)
        return (left - box["x"]) / box["width"], (top - box["y"]) / box["height"]

    x, y = middle_of(cracks[1])
    wait_for_pixel(page, *share(x + 6, y), is_coloured)
    stroke = ImageColor.getrgb(
        colours(Map(tile_px=SIZE_PX, overlap=0, model_mm_per_px=None).width_classes)["over 0.41 mm"]
    )
    painted = [pixel(page, *share(x + beside, y)) for beside in np.arange(4, 8, 0.25)]
    assert min(np.abs(np.subtract(colour, stroke)).max() for colour in painted) < 40  # its edges are smoothed
    inside = [pixel(page, *share(x + across, y)) for across in (-1, 0, 1)]
    page.keyboard.press("l")
    wait_for_pixel(page, *share(x + 6, y), is_grey)
    assert inside == [pixel(page, *share(x + across, y)) for across in (-1, 0, 1)]  # of the photo, not painted over


def test_the_threshold_changes_what_is_marked_in_every_place_that_says_it(page, deck):
    add(page, deck)
    page.select_option("#filter", "marked")
    for threshold, n_marked in (("0.5", 4), ("0.99", 0), (None, 1)):
        if threshold is None:
            page.click("#threshold-reset")
        else:
            page.locator("#threshold").fill(threshold)
        assert words(page, "#summary") == words(page, ".photo .state") == f"{n_marked} of 6 tiles marked, 3 to review"
        assert page.locator(".tile").count() == n_marked
    assert words(page, "#threshold-value") == "0.80"  # from which the model itself says crack


@pytest.mark.parametrize(("prevalence", "probability_of_middle"), [(None, 0.5744), (0.1, 0.1304)])
def test_page_api_and_cracks_map_say_the_same_of_a_photo_with_and_without_a_stated_share_of_cracks(
    page, deck, root, tmp_path, server, prevalence, probability_of_middle
):
    add(page, deck)
    if prevalence is not None:
        page.fill("#prevalence", f"{100 * prevalence:g}")
        page.keyboard.press("Enter")
        page.locator("#notes", has_text="corrected for 10 %").wait_for()
    params = Map(tile_px=SIZE_PX, overlap=0, model_mm_per_px=None)
    with found_model("cracks", str(root / "starter")) as found:
        row = run(found, [Path(deck)], tmp_path / "maps", params, prevalence=prevalence).loc[0]
    to_review = f", {row['n_review']} to review" if row["n_review"] else ""
    assert words(page, "#summary") == f"{row['n_crack']} of {row['n_tiles']} tiles marked{to_review}"
    page.select_option("#filter", "all")
    on_page = {float(text) for text in page.locator(".tile .probability").all_inner_texts()}
    query = {} if prevalence is None else {"prevalence": prevalence}
    with server.client() as client:
        answer = client.post("/v1/map", files={"file": Path(deck).read_bytes()}, params=query).json()
    tiles = pd.read_csv(tmp_path / "maps" / "deck.tiles.csv")
    assert [tile["probability"] for tile in answer["tiles"]] == pytest.approx(tiles["probability"].tolist(), abs=6e-5)
    assert [tile["label"] for tile in answer["tiles"]] == tiles["label"].tolist()
    assert on_page == {round(tile["probability"], 2) for tile in answer["tiles"]}
    assert page.locator("#notes li").all_inner_texts() == answer["notes"]
    assert tiles["probability"][1] == pytest.approx(probability_of_middle, abs=1e-3)


def test_another_share_of_cracks_maps_all_photos_again_and_keeps_the_reviews(page, deck, tmp_path):
    add(page, deck, photo(tmp_path / "other.png", [["review", "review"]]))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    page.fill("#prevalence", "99")
    page.keyboard.press("Enter")
    page.locator(".photo .state", has_text="2 of 2 tiles marked").wait_for()
    page.locator("#summary", has_text="4 of 6 tiles marked").wait_for()
    assert "Probabilities are corrected for 99 % of the tiles cracked" in words(page, "#notes")
    page.select_option("#filter", "labelled")
    assert page.locator(".tile .verdict-label").all_inner_texts() == ["intact"]
    assert words(page, "#export-button") == "Export 1 label"
    page.fill("#prevalence", "100")  # which no photo has: the browser says so, nothing is sent
    page.keyboard.press("Enter")
    assert not page.evaluate("document.getElementById('prevalence').checkValidity()")
    page.fill("#prevalence", "")
    page.keyboard.press("Enter")
    page.locator("#summary", has_text="1 of 6 tiles marked").wait_for()
    assert page.complaints == []


def pixel(page, x_share, y_share):
    """Return the colour of the canvas at a share of its width and height."""
    return page.evaluate(
        """([x, y]) => {
            const canvas = document.getElementById("canvas");
            const context = canvas.getContext("2d");
            return [...context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data.slice(0, 3)];
        }""",
        [x_share, y_share],
    )


def is_grey(colour):
    return max(colour) - min(colour) < 12


def is_coloured(colour):
    return not is_grey(colour)


def wait_for_pixel(page, x_share, y_share, holds):
    """Wait until a frame is drawn in which `holds` is true of a pixel's colour."""
    for _ in range(200):
        if holds(pixel(page, x_share, y_share)):
            return
        page.wait_for_timeout(20)
    raise AssertionError(pixel(page, x_share, y_share))


def test_the_map_lies_over_the_photo_and_can_be_taken_away(page, tmp_path):
    add(page, photo(tmp_path / "two.png", [["crack", "intact"]]))
    wait_for_pixel(page, 0.25, 0.5, is_coloured)
    wait_for_pixel(page, 0.75, 0.5, is_grey)
    page.keyboard.press("m")
    wait_for_pixel(page, 0.25, 0.5, is_grey)


def test_a_tile_to_review_is_outlined_and_not_shaded_whatever_the_threshold(page, tmp_path):
    add(page, photo(tmp_path / "two.png", [["review", "intact"]]))
    page.locator("#threshold").fill("0.3")
    assert words(page, "#summary") == "1 of 2 tiles marked, 1 to review"
    page.wait_for_timeout(100)
    assert is_grey(pixel(page, 0.25, 0.5))


def test_the_photo_can_be_zoomed_and_moved(page, tmp_path):
    add(page, photo(tmp_path / "two.png", [["crack", "intact"]]))
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    wait_for_pixel(page, 0.45, 0.5, is_coloured)
    page.mouse.wheel(0, -300)
    wait_for_pixel(page, 0.45, 0.5, is_grey)  # the intact half has grown over the middle
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + box["height"] / 2, steps=2)
    page.mouse.up()
    wait_for_pixel(page, 0.41, 0.5, is_coloured)
    page.keyboard.press("0")
    wait_for_pixel(page, 0.52, 0.5, is_grey)
    wait_for_pixel(page, 0.48, 0.5, is_coloured)


def test_a_tile_is_picked_by_a_click_on_the_photo(page, tmp_path):
    add(page, photo(tmp_path / "two.png", [["review", "intact"]]))
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    assert page.locator(".tile[aria-selected=true]").count() == 1
    page.click("#confirm")
    assert words(page, ".tile .verdict-label") == "crack"


def test_a_file_that_is_not_an_image_fails_and_the_others_are_mapped(page, deck, tmp_path):
    (tmp_path / "notes.jpg").write_text("no photo")
    page.set_input_files("#files", [str(tmp_path / "notes.jpg"), deck])
    page.locator("[data-state=done]").wait_for()
    assert words(page, "[data-state=failed] .state") == "notes.jpg: not an image"
    assert words(page, "#progress-text") == "2 of 2 photos processed, 1 failed"


def test_a_photo_that_the_browser_cannot_show_is_shown_by_the_server(page, tmp_path):
    add(page, photo(tmp_path / "two.tiff", [["crack", "intact"]]))
    wait_for_pixel(page, 0.75, 0.5, lambda colour: abs(colour[0] - LEVELS["intact"]) < 6)


def test_a_name_that_hides_its_direction_is_shown_in_full(page, tmp_path):
    add(page, photo(tmp_path / "a\u202egpj.png", [["intact"]]))
    assert words(page, ".photo .name") == r"a\u202egpj.png"


def test_everything_can_be_reached_by_keyboard(page, deck):
    add(page, deck)
    page.keyboard.press("Tab")
    seen = set()
    for _ in range(25):
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        is_seen = "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(is_seen) != "none"
        page.keyboard.press("Tab")
    assert {"choose", "photo", "threshold", "show-map", "zoom-in", "canvas", "filter", "reviewer"} <= seen


@pytest.mark.parametrize(("width", "height"), [(820, 1180), (390, 800)])
def test_a_small_screen_shows_all_without_scrolling_sideways(browser, server, deck, width, height):
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=True)
    page = context.new_page()
    page.goto(server.url)
    add(page, deck)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("#confirm", "#reject", "#export-button", "#zoom-in"):
        page.locator(name).scroll_into_view_if_needed()
        box = page.locator(name).bounding_box()
        assert box["height"] >= 40
        assert box["x"] + box["width"] <= width
    notes, review = page.locator("#notes").bounding_box(), page.locator("#review").bounding_box()
    assert notes["y"] + notes["height"] <= review["y"] + 1  # the caveats are not cut off
    context.close()


def test_the_page_asks_for_the_key_and_uses_it(browser, root, tmp_path, deck):
    with Server(tmp_path / "server", starter=root / "starter", api_key="secret") as server:
        server.wait_until_ready()
        page = browser.new_page()
        page.goto(server.url)
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.get_by_text("Model: the starter model").wait_for()
        add(page, deck)
        page.close()


def contrast(one, other):
    """Return the contrast of two colours as WCAG 2.2 defines it."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_text_has_enough_contrast_with_its_background(page, deck):
    add(page, deck)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("c")
    found = page.evaluate(
        """() => {
            const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const ground = (element) => {
                for (let at = element; at; at = at.parentElement) {
                    const colour = parts(getComputedStyle(at).backgroundColor);
                    if (colour.length === 3 || colour[3] > 0.9) return colour.slice(0, 3);
                }
                return [255, 255, 255];
            };
            return [...document.querySelectorAll("body *")]
                .filter((one) => one.offsetParent && [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
                .map((one) => [one.textContent.trim(), parts(getComputedStyle(one).color).slice(0, 3), ground(one)]);
        }"""
    )
    assert len(found) > 20
    assert [text for text, colour, ground in found if contrast(colour, ground) < 4.5] == []
