import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archive_writer import LIMITS
from drawn_data import in_process, params_for
from PIL import Image
from scipy.io import savemat

from pipeline.data import dataset_reader
from pipeline.data.archives import Entry
from pipeline.data.audit import audit
from pipeline.data.dataset_reader import pack_dataset
from pipeline.data.images import PackedImages, UnreadableImageError, decode, read_quarantine
from pipeline.data.masks import labelled_entries, read_mat
from pipeline.data.sources import Batch, read_batch
from pipeline.errors import CracksError
from pipeline.params import Dataset, Masks

FOLDERS = {"rgb": "truth"}
MAX_PIXELS = 10_000_000


def masks(**changes):
    return Masks.model_validate({"folders": FOLDERS, "crack": (255,), "tile_px": 64, "min_crack_px": 16} | changes)


def mask_of(*, rows=0, columns=slice(0, 0), height=128, width=128, value=255):
    """A mask with a crack of `value` in these rows and columns, on look-alikes of 204 below it."""
    mask = np.zeros((height, width), np.uint8)
    mask[-3:] = 204
    mask[rows, columns] = value
    return mask


def mat(segmentation, *, in_cells=False):
    """A MAT as CrackForest's, a struct with the field Segmentation, or as BSDS500's, cells of such structs."""
    buffer = io.BytesIO()
    truth = {"Boundaries": segmentation > 0, "Segmentation": segmentation}
    savemat(buffer, {"groundTruth": np.array([truth, truth]) if in_cells else truth}, do_compression=True)
    return buffer.getvalue()


def coco(*polygons, file_name="a.jpg", width=128, height=128, category="crack", **changes):
    content = {
        "images": [{"id": 7, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": category}, {"id": 2, "name": "joint"}],
        "annotations": [{"image_id": 7, "category_id": i, "segmentation": [one]} for i, one in enumerate(polygons, 1)],
    }
    return json.dumps(content | changes).encode()


@pytest.fixture(scope="module")
def image(draw_tile, encode):
    return encode(draw_tile(1, size_px=128))


@pytest.fixture
def read(encode):
    """Return a function from files to what `labelled_entries` yields: path -> reason, or None if it is used."""

    def run(files, settings):
        entries = [Entry(path, content) for path, content in files.items()]
        found = list(labelled_entries(lambda: iter(entries), settings, MAX_PIXELS))
        return {entry.path: entry.reason or None for entry in found}

    return run


TILES = {  # a crack along row 10, from column 20 to 99: in both upper tiles, 44 and 36 px of it
    "rgb/crack/a-0-0.png": None,
    "rgb/crack/a-0-64.png": None,
    "rgb/intact/a-64-0.png": None,
    "rgb/intact/a-64-64.png": None,
}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_tiles_are_cracked_where_the_mask_is(read, image, encode, mode):
    mask = Image.fromarray(mask_of(rows=10, columns=slice(20, 100)))
    if mode == "P":
        mask.putpalette(list(range(256)) * 3)
    truth = encode(mask if mode == "P" else mask.convert(mode), "PNG")
    for files in ({"rgb/a.jpg": image, "truth/a.png": truth}, {"truth/a.png": truth, "rgb/a.jpg": image}):
        assert read(files, masks()) == TILES


@pytest.mark.parametrize("in_cells", [False, True])
def test_a_mat_with_a_nested_segmentation_is_a_mask(read, image, in_cells):
    truth = mat(mask_of(rows=10, columns=slice(20, 100), value=2), in_cells=in_cells)
    assert read({"set/rgb/a.jpg": image, "set/truth/a.mat": truth}, masks(crack=(2,))) == {
        f"set/{path}": None for path in TILES
    }


def test_polygons_of_the_named_categories_are_cracks(read, image):
    crack, joint = [20, 9, 99, 9, 99, 11, 20, 11], [0, 100, 127, 100, 127, 110, 0, 110]
    settings = masks(folders={}, coco="_annotations.coco.json", crack=("crack",))
    files = {"rgb/a.jpg": image, "rgb/_annotations.coco.json": coco(crack, joint)}
    assert read(files, settings) == TILES


def test_a_tile_with_less_than_the_least_length_of_a_crack_is_neither_cracked_nor_intact(read, image, encode):
    for length, reason in ((16, None), (15, "neither cracked nor intact: its crack is 15 px long, less than 16")):
        truth = mask_of(rows=10, columns=slice(20, 80))
        truth[100 : 100 + length, 30] = 255
        truth[124, 30] = 255  # a speck apart is no part of it
        found = read({"rgb/a.jpg": image, "truth/a.png": encode(truth, "PNG")}, masks())
        assert found["rgb/crack/a-64-0.png"] == reason
        assert found["rgb/crack/a-0-64.png"] is None  # 16 px


def test_tiles_reach_both_edges_and_have_the_pixels_of_the_image(image, encode):
    upright = decode(image)[:100]
    files = {
        "rgb/a.png": encode(upright, "PNG"),
        "truth/a.png": encode(mask_of(rows=5, columns=slice(0, 128), height=100), "PNG"),
    }
    entries = [Entry(path, content) for path, content in files.items()]
    found = {entry.path: entry for entry in labelled_entries(lambda: iter(entries), masks(), MAX_PIXELS)}
    names = ("crack/a-0-0", "crack/a-0-64", "intact/a-36-0", "intact/a-36-64")
    assert sorted(found) == [f"rgb/{name}.png" for name in names]
    assert np.array_equal(decode(found["rgb/intact/a-36-64.png"].content), upright[36:, 64:])


def test_without_a_tile_size_whole_images_keep_their_bytes(image, encode):
    truth = encode(mask_of(rows=5, columns=slice(0, 128)), "PNG")
    entries = [Entry("rgb/a.jpg", image), Entry("truth/a.png", truth)]
    assert list(labelled_entries(lambda: iter(entries), masks(tile_px=None), MAX_PIXELS)) == [
        Entry("rgb/crack/a.jpg", image)
    ]


CRACK = [20, 9, 99, 9, 99, 11, 20, 11]
MISFITS = {
    "no mask": ({"rgb/b.jpg": None}, {}, {"rgb/b.jpg": "there is none"}),
    "no image": ({"truth/b.png": mask_of()}, {}, {"truth/b.png": "there is no image rgb/b"}),
    "another size": (
        {"rgb/b.jpg": None, "truth/b.png": mask_of(width=100)},
        {},
        {"rgb/b.jpg": "truth/b.png is 100 x 128 px, and the image 128 x 128 px"},
    ),
    "a MAT of another size": (
        {"rgb/b.jpg": None, "truth/b.mat": mat(mask_of(height=64))},
        {},
        {"rgb/b.jpg": "truth/b.mat is 128 x 64 px, and the image 128 x 128 px"},
    ),
    "a MAT that is none": ({"rgb/b.jpg": None, "truth/b.mat": b"M" * 500}, {}, {"rgb/b.jpg": "truth/b.mat cannot be"}),
    "a PNG that is none": ({"rgb/b.jpg": None, "truth/b.png": b"x"}, {}, {"rgb/b.jpg": "truth/b.png not an image"}),
    "a MAT that expands": (
        {"rgb/b.jpg": None, "truth/b.mat": mat(np.zeros((4000, 4000)))},
        {},
        {"rgb/b.jpg": "truth/b.mat unpacks to more than a mask of this image needs"},
    ),
}


@pytest.mark.parametrize(("files", "changes", "reasons"), MISFITS.values(), ids=MISFITS)
def test_images_and_masks_that_do_not_fit_each_other_are_named_with_the_reason(
    read, image, encode, files, changes, reasons
):
    good = {"rgb/a.jpg": image, "truth/a.png": encode(mask_of(rows=10, columns=slice(20, 100)), "PNG")}
    bad = {
        path: encode(content, "PNG") if isinstance(content, np.ndarray) else image if content is None else content
        for path, content in files.items()
    }
    found = read(good | bad, masks(**changes))
    assert {path for path, reason in found.items() if reason is None} == set(TILES)
    rest = {path: reason for path, reason in found.items() if reason is not None}
    assert rest.keys() == reasons.keys()
    for path, reason in reasons.items():
        assert rest[path].startswith(f"its mask does not fit: {reason}")


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        (coco(CRACK, width=100), "is 100 x 128 px, and the image 128 x 128 px"),
        (coco([20, 9, 300, 9, 300, 11]), "has a polygon that leads out of the image"),
        (coco([20, float("nan"), 30, 9, 30, 11]), "has a polygon that leads out of the image"),
        (coco({"counts": [1]}), "has no polygons of x, y, x, y, ...; run-length codes are not read"),
        (coco(annotations=[{"image_id": 7, "category_id": 1, "segmentation": {"counts": "x"}}]), "has no polygons"),
        (coco([20, 9, 30]), "has no polygons"),
        (coco([20, 9]), "has no polygons"),
    ],
    ids=["another size", "outside", "no number", "a nested code", "a code", "half a corner", "one corner"],
)
def test_annotations_that_do_not_fit_their_image_are_named_with_the_reason(read, image, annotations, reason):
    settings = masks(folders={}, coco="c.json", crack=("crack",))
    files = {
        "rgb/a.jpg": image,
        "rgb/c.json": annotations,
        "more/b.jpg": image,
        "more/c.json": coco(CRACK, file_name="b.jpg"),
    }
    assert read(files, settings)["rgb/a.jpg"].startswith(f"its mask does not fit: rgb/c.json {reason}")


def test_a_damaged_file_of_annotations_is_refused(read, image):
    settings = masks(folders={}, coco="c.json", crack=("crack",))
    for content in (b"{", b"[]", coco(images=[{"id": 7}]), coco(CRACK, images=[])):
        with pytest.raises(CracksError, match=r"rgb/c\.json is no file of annotations in COCO's format"):
            read({"rgb/a.jpg": image, "rgb/c.json": content}, settings)


def test_a_warning_says_that_no_mask_has_the_value_of_a_crack(read, image, encode, caplog):
    files = {"rgb/a.jpg": image, "truth/a.png": encode(mask_of(rows=10, columns=slice(20, 100), value=1), "PNG")}
    assert set(read(files, masks()).values()) == {None}
    assert caplog.messages == ["No mask of these images has a crack: 255, by `masks.crack`"]


def test_an_empty_batch_gives_neither_an_image_nor_a_warning(read, caplog):
    assert read({}, masks()) == {}
    assert not caplog.messages


def test_a_mat_that_claims_more_than_it_holds_is_unreadable_and_takes_no_memory():
    content = bytearray(mat(np.zeros((8, 8), np.uint8)))
    for cut in range(130, len(content), 7):
        with pytest.raises(UnreadableImageError):
            read_mat(bytes(content[:cut]), (8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": {"crack": [1], "min_crack_px": 1}}, "either folders or coco must say where the masks are"),
        ({"masks": {"folders": FOLDERS, "coco": "c.json", "crack": [1], "min_crack_px": 1}}, "and not both"),
        ({"labels": {"a": "crack"}, "masks": masks()}, "masks label the images, so labels must be left out"),
    ],
)
def test_params_of_masks_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Dataset.model_validate({"source": "a.zip"} | changes)


def test_a_data_set_with_masks_keeps_the_tiles_of_an_image_together_and_breaks_its_contract_where_one_does_not_fit(
    monkeypatch, tmp_path, draw_tile, encode
):
    monkeypatch.setattr(dataset_reader, "ProcessPoolExecutor", in_process)
    with zipfile.ZipFile(tmp_path / "walls.zip", "w") as opened:
        for number in range(4):
            opened.writestr(f"rgb/wall-{number}.jpg", encode(draw_tile(number, size_px=128)))
            truth = mask_of(rows=10, columns=slice(20, 80), height=128 - 9 * (number == 3))  # 16 px in the second tile
            opened.writestr(f"truth/wall-{number}.png", encode(truth, "PNG"))
    params = params_for(["walls"], contract={"min_decodable_share": 0.5, "ranges": {}})
    settings = Dataset(source=tmp_path / "walls.zip", masks=masks(min_crack_px=17))
    pack_dataset(settings, LIMITS, tmp_path / "walls")
    images, quarantine = PackedImages(tmp_path / "walls"), read_quarantine(tmp_path / "walls")
    counted = images.inventory.groupby(["photo", "label", "slice"]).size().to_dict()
    assert counted == {(f"wall-{i}", label, "rgb"): n for i in range(3) for label, n in (("crack", 1), ("intact", 2))}
    assert quarantine.groupby("is_image").size().to_dict() == {False: 1, True: 3}
    found = audit("walls", settings, params, images, quarantine)
    broken = {rule.text: rule.paths for rule in found.rules if rule.state == "broken"}
    assert broken == {
        "at least 4 images are labelled crack": (),
        "every image has a mask that fits, and every mask an image": ("rgb/wall-3.jpg",),
    }


@pytest.mark.skipif("CRACKS_REAL_DATA" not in os.environ, reason="CRACKS_REAL_DATA names no folder of real images")
def test_the_published_masks_are_read():
    archive = Path(os.environ["CRACKS_REAL_DATA"]) / "cfd-even.zip"
    settings = masks(folders={"image": "groundTruth"}, crack=(2,), tile_px=160)
    entries = list(labelled_entries(lambda: read_batch(Batch("", archive), LIMITS), settings, MAX_PIXELS))
    assert len(entries) == 59 * 6
    assert not [entry for entry in entries if entry.content is None]
