import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cracked_photos import cracked_photo
from image_bombs import jpeg_of_scans
from page_reader import Page
from PIL import ExifTags, Image
from shapely import unary_union
from shapely.geometry import Point, shape
from tiny_model import write_blind_tracer

from pipeline.crack_maps import map_files
from pipeline.crack_maps.map_files import run
from pipeline.crack_maps.photo_files import names_of
from pipeline.models.decision import DECISION_FILE
from pipeline.params import Map
from pipeline.registry.model_lookup import found_model

PARAMS = Map(tile_px=40, overlap=0, model_mm_per_px=None)


@pytest.fixture
def found(dark_is_crack):
    with found_model("cracks", str(dark_is_crack)) as found:
        yield found


@pytest.fixture
def photos(tmp_path):
    """Three photos, by how dark they are: sound, half cracked, and with a cracked corner on its side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    sound = np.full((80, 80, 3), 255, np.uint8)
    half, corner = sound.copy(), np.full((80, 120, 3), 255, np.uint8)
    half[:40], corner[:40, :40] = 0, 0
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:05:01 10:20:30"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (46.0, 30.0, 0.0), 3: "E", 4: (7.0, 15.0, 0.0)})
    for name, pixels, settings in (("a", sound, {}), ("b", half, {}), ("c", corner, {"exif": exif})):
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=95, **settings)
    return sorted(folder.iterdir())


def report(out, name):
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))


def test_each_photo_has_a_picture_a_table_and_a_report_and_the_folder_a_page(tmp_path, found, photos):
    out = tmp_path / "out"
    run(found, photos, out, PARAMS)
    kinds = ("cracks.jpg", "mask.png", "geojson", "json", "tiles.csv")
    of_all = {"summary.csv", "cracks.csv", "cracks.coco.json", "index.html"}
    expected = {f"{name}.{kind}" for name in "abc" for kind in kinds} | of_all
    assert {path.name for path in out.iterdir()} == expected
    tiles = pd.read_csv(out / "b.tiles.csv")
    assert list(tiles) == ["photo", "row", "col", "x", "y", "size", "probability", "label", "reason"]
    assert tiles["label"].tolist() == ["crack", "crack", "intact", "intact"]
    assert tiles["photo"].unique().tolist() == [str(photos[1])]
    assert report(out, "b")["n_crack"] == 2
    assert report(out, "b")["share_cracked"] == pytest.approx(0.5, abs=0.11)
    assert report(out, "b")["model"] == f"the model in {found.folder}"


def test_a_stated_share_of_cracks_is_in_all_that_a_map_says_and_maps_the_photos_again(tmp_path, photos, dark_is_crack):
    shutil.copytree(dark_is_crack, tmp_path / "assuming")
    file = tmp_path / "assuming" / DECISION_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prevalence": 0.5}))
    out = tmp_path / "out"
    with found_model("cracks", str(tmp_path / "assuming")) as assuming:
        run(assuming, photos, out, PARAMS)
        plain = pd.read_csv(out / "b.tiles.csv")["probability"]
        run(assuming, photos, out, PARAMS, prevalence=0.9999)
    tiles = pd.read_csv(out / "b.tiles.csv")
    assert (tiles["probability"] > plain).all()
    assert tiles["label"].tolist() == ["crack"] * 4  # the light ones too
    assert tiles[["assumed_prevalence", "prevalence"]].to_numpy().tolist() == [[0.5, 0.9999]] * 4
    said = "Probabilities are corrected for 99.99 % of the tiles cracked, as stated; by itself the model assumes 50 %."
    assert said in report(out, "b")["notes"]
    assert report(out, "b")["prevalence"] == 0.9999
    assert "corrected for 99.99" in (out / "index.html").read_text(encoding="utf-8")


def test_no_name_is_a_formula_and_none_hides_its_direction(tmp_path, found, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [photos[0].rename("=1+1.jpg"), photos[1].rename("-a\u202egpj.jpg"), photos[2].rename("caf\udce9.jpg")]
    run(found, names, Path("out"), PARAMS)
    expected = {r"caf\udce9.jpg", r"'-a\u202egpj.jpg", "'=1+1.jpg"}
    assert set(pd.read_csv("out/summary.csv")["photo"]) == expected
    assert set(pd.concat(map(pd.read_csv, Path("out").glob("*.tiles.csv")))["photo"]) == expected


def test_the_most_cracked_photo_comes_first(tmp_path, found, photos):
    summary = run(found, photos, tmp_path / "out", PARAMS)
    assert summary["name"].tolist() == ["b", "c", "a"]
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["name"].tolist() == ["b", "c", "a"]


def test_a_photo_on_its_side_is_mapped_upright(tmp_path, found, photos):
    run(found, photos[2:], tmp_path, PARAMS)
    tiles = pd.read_csv(tmp_path / "c.tiles.csv")
    assert (report(tmp_path, "c")["width"], report(tmp_path, "c")["height"]) == (80, 120)
    assert tiles.loc[tiles["label"] == "crack", ["x", "y"]].to_numpy().tolist() == [[40, 0]]


@pytest.fixture
def cracked():
    """A rough dark surface, whose tiles are all called cracked, (400, 560), with a crack of 6 px, and its course."""
    course = [(40, 60), (200, 130), (330, 250), (520, 300)]
    pixels, [crack] = cracked_photo(400, 560, [course], level=80, crack_px=6)
    return pixels, crack


def lines_of(out, name):
    return [shape(feature["geometry"]) for feature in json.loads((out / f"{name}.geojson").read_text())["features"]]


def test_the_line_of_a_crack_is_where_it_is_in_the_photo_as_displayed(tmp_path, found, cracked):
    pixels, course = cracked
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "on its side.jpg", quality=95, exif=exif)
    summary = run(found, [tmp_path / "on its side.jpg"], tmp_path, PARAMS, mm_per_px=0.5)
    found_course = unary_union(lines_of(tmp_path, "on its side"))
    assert found_course.hausdorff_distance(course) < 12  # its ends
    assert course.buffer(6).contains(found_course)
    with Image.open(tmp_path / "on its side.mask.png") as mask:
        assert mask.size == (560, 400)
    row, tiles = summary.loc[0], pd.read_csv(tmp_path / "on its side.tiles.csv")
    assert row["n_lines"] == len(pd.read_csv(tmp_path / "cracks.csv")) >= 1
    assert row["length_px"] == pytest.approx(course.length, rel=0.05)
    assert len(tiles) == 10 * 14
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "no line is no proof that there is no crack" in page.text
    assert "a guide to crack widths, and no limit of what is allowed" in " ".join(page.text.split())


def test_what_is_transparent_has_no_line_and_neither_has_its_edge(tmp_path, found, cracked):
    pixels, course = cracked
    opaque = np.zeros(pixels.shape[:2], np.uint8)
    opaque[:, :300] = 255
    Image.fromarray(np.dstack([np.where(opaque[..., None] > 0, pixels, 0), opaque])).save(tmp_path / "a.png")
    run(found, [tmp_path / "a.png"], tmp_path, PARAMS)
    lines = lines_of(tmp_path, "a")
    assert lines
    assert max(Point(place).distance(course) for line in lines for place in line.coords) < 3


def test_a_line_leaves_its_crack_visible_and_takes_the_shade_from_its_tile(tmp_path, found, cracked):
    pixels, course = cracked
    Image.fromarray(pixels).save(tmp_path / "a.png")
    params = PARAMS.model_copy(update={"tile_px": 200})
    run(found, [tmp_path / "a.png"], tmp_path, params)
    with Image.open(tmp_path / "a.cracks.jpg") as picture:
        drawn = np.asarray(picture).astype(int)
    x, y = (round(part) for part in course.interpolate(250).coords[0])
    assert drawn[y - 1 : y + 2, x - 1 : x + 2].max() < 70  # the crack itself
    redness = (drawn[..., 0] - drawn[..., 2]).clip(0)
    assert redness[210:390, 10:190].mean() > 20  # cracked tiles: one without a line
    assert redness[270:390, 210:350].mean() < 5  # and one with a line


def test_time_and_place_are_kept_unless_they_are_stripped(tmp_path, found, photos):
    run(found, photos[2:], tmp_path / "kept", PARAMS)
    kept = report(tmp_path / "kept", "c")
    assert kept["time"] == "2026-05-01T10:20:30"
    assert kept["place"] == {"latitude": 46.5, "longitude": 7.25}
    assert "46.5" in (tmp_path / "kept" / "summary.csv").read_text()
    assert "46.50000, 7.25000" in (tmp_path / "kept" / "index.html").read_text()
    run(found, photos[2:], tmp_path / "stripped", PARAMS, strip_location=True)
    for path in (tmp_path / "stripped").iterdir():
        content = path.read_bytes()
        assert b"46.5" not in content
        assert b"2026-05-01" not in content
        assert b"2026:05:01" not in content


def test_stripping_the_location_maps_photos_again_that_had_it(tmp_path, found, photos):
    run(found, photos[2:], tmp_path, PARAMS)
    run(found, photos[2:], tmp_path, PARAMS, strip_location=True)
    assert report(tmp_path, "c")["place"] is None


def test_every_map_has_the_caveats_about_missed_cracks(tmp_path, found, photos):
    run(found, photos[:1], tmp_path, PARAMS)
    assert report(tmp_path, "a")["notes"][:2] == [
        "It is not recorded how many cracks this model misses.",
        "An unmarked area may still have cracks.",
    ]


def test_files_of_one_name_from_two_folders_do_not_collide(tmp_path, found, photos):
    other = tmp_path / "other"
    other.mkdir()
    (other / "A.JPG").write_bytes(photos[1].read_bytes())
    (other / "a.png").write_bytes(photos[0].read_bytes())
    names = names_of([photos[0], other / "A.JPG", other / "a.png", photos[1]])
    assert len({name.casefold() for name in names.values()}) == 4
    assert names[photos[1]] == "b"
    assert all(name.casefold().startswith("a-") for path, name in names.items() if path != photos[1])
    summary = run(found, list(names), tmp_path / "out", PARAMS)
    assert summary["error"].tolist() == ["", "", "", ""]
    assert len(list((tmp_path / "out").glob("*.tiles.csv"))) == 4


def test_the_report_of_a_photo_does_not_take_the_name_of_the_table_of_all():
    (name,) = names_of([Path("Cracks.coco.jpg")]).values()
    assert name.startswith("Cracks.coco-")


def test_a_name_too_long_for_more_endings_is_cut():
    path = Path("ä" * 126 + ".jpg")
    (name,) = names_of([path]).values()
    assert len(f".{name}.cracks.jpg.4194304-01234567.partial".encode()) <= 255


def test_files_that_cannot_be_mapped_are_rows_with_their_error(tmp_path, found, photos, encode):
    folder = photos[0].parent
    (folder / "bomb.jpg").write_bytes(jpeg_of_scans(200_000, size_px=2000))
    (folder / "cut.jpg").write_bytes(photos[0].read_bytes()[:-300])
    (folder / "dot.png").write_bytes(encode(np.zeros((1, 1, 3), np.uint8), "PNG"))
    (folder / "huge.png").write_bytes(huge_png())
    (folder / "note.jpg").write_text("<script>alert(1)</script>")
    summary = run(found, sorted(folder.iterdir()), tmp_path / "out", PARAMS).set_index("name")
    assert summary.index.tolist() == ["b", "c", "a", "bomb", "cut", "dot", "huge", "note"]
    assert summary.loc["bomb", "error"] == "it has more than 100 scans"
    assert summary.loc["cut", "error"] != ""
    assert summary.loc["dot", "error"].startswith("The photo has 1 x 1 px")
    assert summary.loc["huge", "error"] == "60000 x 60000 px is more than 200 megapixels. Divide it"
    assert summary.loc["note", "error"] == "not an image"
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "5 failed" in page.text
    assert not (tmp_path / "out" / "cut.json").exists()


def huge_png():
    """A small file whose header says 60,000 x 60,000 px."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def mapped_names(monkeypatch):
    """The photos that were really mapped, in order."""
    names = []
    map_photo = map_files.map_photo

    def noted(mapper, job, path, *rest):
        names.append(path.stem)
        return map_photo(mapper, job, path, *rest)

    monkeypatch.setattr(map_files, "map_photo", noted)
    return names


def test_a_second_run_maps_only_what_is_new_or_changed(tmp_path, found, photos, mapped_names):
    first = run(found, photos[:2], tmp_path, PARAMS)
    assert sorted(mapped_names) == ["a", "b"]
    mapped_names.clear()
    Image.new("RGB", (50, 90)).save(photos[1])
    second = run(found, photos, tmp_path, PARAMS)
    assert sorted(mapped_names) == ["b", "c"]
    kept = ["photo", "share_cracked", "max_probability", "n_tiles"]
    rows = [table.loc[table["name"] == "a", kept].to_numpy().tolist() for table in (first, second)]
    assert rows[0] == rows[1]


def test_other_settings_map_again(tmp_path, found, photos, mapped_names):
    run(found, photos[:1], tmp_path, PARAMS)
    run(found, photos[:1], tmp_path, PARAMS.model_copy(update={"overlap": 0.5}))
    assert mapped_names == ["a", "a"]


def test_with_another_tracer_a_photo_is_mapped_again_and_has_its_lines(tmp_path, found, mapped_names):
    pixels, _ = cracked_photo(300, 300, [[(0, 150), (300, 150)]], 140, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    blind = replace(found, folder=tmp_path / "blind")
    shutil.copytree(found.folder, blind.folder)
    write_blind_tracer(blind.folder)
    n_lines = []
    for model in (found, blind, blind):
        run(model, [tmp_path / "a.png"], tmp_path / "out", PARAMS)
        n_lines.append(report(tmp_path / "out", "a")["n_lines"])
    assert mapped_names == ["a", "a"]
    assert n_lines == [1, 0, 0]


def test_a_map_that_was_cut_short_is_made_again(tmp_path, found, photos, mapped_names):
    run(found, photos[:1], tmp_path, PARAMS)
    (tmp_path / "a.json").write_text('{"half')
    run(found, photos[:1], tmp_path, PARAMS)
    assert mapped_names == ["a", "a"]


def test_a_map_of_which_a_file_was_deleted_is_made_again(tmp_path, found, photos, mapped_names):
    run(found, photos[:1], tmp_path, PARAMS)
    (tmp_path / "a.geojson").unlink()
    run(found, photos[:1], tmp_path, PARAMS)
    assert mapped_names == ["a", "a"]
    assert (tmp_path / "a.geojson").is_file()


def test_the_page_is_escaped_and_links_only_to_files_beside_it(tmp_path, found, photos):
    evil = photos[0].with_name("<img src=x onerror=alert(1)>#?%41.jpg")
    photos[0].rename(evil)
    run(found, [evil, *photos[1:]], tmp_path / "out", PARAMS)
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "onerror" not in {key for _, attributes in page.elements for key in attributes}
    assert evil.stem in page.text
    from urllib.parse import unquote

    links = [link["href"] for link in page.all("a") if not link["href"].startswith("#")]
    assert len(links) == 3 + 6 * 3
    for link in links:
        assert (tmp_path / "out" / unquote(link)).exists()
        assert "#" not in link
        assert "?" not in link
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))


def test_the_page_shows_the_most_cracked_photos_of_many(tmp_path, found, photos, monkeypatch):
    monkeypatch.setattr("pipeline.crack_maps.map_page.MAX_CARDS", 2)
    run(found, photos, tmp_path, PARAMS)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "The first 2 of 3" in page.text
    assert [image["alt"].rpartition("/")[2] for image in page.all("img")] == ["b.jpg", "c.jpg"]
