"""What the project promises: each planted fault stops the run, and the message says which it was and where."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from drawn_data import changed, drawn_files, ingest_files, params_for
from PIL import Image, ImageOps

from pipeline import split, validate
from pipeline.data.images import read_quarantine
from pipeline.errors import RefusedError

N = 20  # images of each label
PARAMS = params_for(["walls"])


@pytest.fixture(scope="module")
def files():
    return drawn_files(n=N, seed=3)


@pytest.fixture(scope="module")
def sound(files, tmp_path_factory):
    """Sound data with one mirrored copy of each label, found green."""
    more = {f"{label}/copy.jpg": changed(files[f"{label}/0001.jpg"]) for label in ("crack", "intact")}
    folder = tmp_path_factory.mktemp("sound")
    (folder / "datasets").mkdir()
    ingest_files(files | more, folder / "walls").rename(folder / "datasets" / "walls")
    validate.run(
        PARAMS,
        "walls",
        folder / "datasets" / "walls",
        context=folder / "gx",
        report=folder / "walls.json",
        page=folder / "walls.html",
        result=folder / "validated" / "walls.json",
    )
    return folder


@pytest.fixture
def validated(tmp_path):
    """A function that ingests files and holds them against the contract."""

    def validated(files):
        dataset = ingest_files(files, tmp_path)
        paths = {"report": tmp_path / "r.json", "page": tmp_path / "r.html", "result": tmp_path / "result.json"}
        paths["context"] = tmp_path / "gx"
        try:
            validate.run(PARAMS, "walls", dataset, **paths)
        finally:
            assert paths["report"].exists()
            assert paths["page"].exists()
        assert paths["result"].exists()
        return dataset

    return validated


@pytest.fixture
def split_places(sound, tmp_path):
    return {
        "datasets": sound / "datasets",
        "validated": sound / "validated",
        "manifest": tmp_path / "manifest.parquet",
        "summary": tmp_path / "split.json",
        "context": tmp_path / "gx",
        "report": tmp_path / "contract.json",
        "page": tmp_path / "contract.html",
    }


def refused(*lines):
    """What the message of a contract with this as its one broken rule matches."""
    text = "walls breaks its contract:\n  broken: " + "\n    ".join(lines) + "\nCorrect the data"
    return "^" + re.escape(text)


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_sound_data_pass(sound, split_places):
    split.run(PARAMS, **split_places)
    manifest = pd.read_parquet(split_places["manifest"]).set_index("path")
    for label in ("crack", "intact"):
        assert manifest.loc[[f"{label}/0001.jpg", f"{label}/copy.jpg"], "group"].nunique() == 1


@pytest.mark.parametrize(
    "change", [ImageOps.mirror, ImageOps.flip, lambda image: image.rotate(180), lambda image: image]
)
def test_a_copy_with_the_other_label_stops_the_run(files, validated, change):
    rule = "no image has a copy with the other label. Observed: 2 images that break the rule"
    with pytest.raises(RefusedError, match=refused(rule, "crack/0004.jpg", "intact/wrong.jpg")):
        validated(files | {"intact/wrong.jpg": changed(files["crack/0004.jpg"], change, quality=80)})


@pytest.mark.parametrize("label", ["crack", "intact"])
def test_a_copy_on_another_side_of_the_split_stops_the_run(split_places, monkeypatch, label):
    build_manifest = split.build_manifest

    def tampered(*arguments):
        manifest = build_manifest(*arguments)
        copy = manifest["path"] == f"{label}/copy.jpg"
        manifest.loc[copy, "split"] = "train" if manifest.loc[copy, "split"].item() == "test" else "test"
        # it was assigned as if it were no copy: only the pixels can tell
        manifest.loc[copy, "group"] = manifest.loc[copy, "sha256"]
        return manifest

    monkeypatch.setattr(split, "build_manifest", tampered)
    rule = "no group, and no photo, is on two sides of the split. Observed: 2 images that break the rule"
    lines = f"  broken: {rule}\n    walls/{label}/0001.jpg\n    walls/{label}/copy.jpg\nCorrect the data"
    with pytest.raises(RefusedError, match="^" + re.escape(f"split breaks its contract:\n{lines}")):
        split.run(PARAMS, **split_places)
    assert not split_places["manifest"].exists()


def test_a_tenth_of_broken_files_stops_the_run(files, validated, tmp_path):
    broken = {
        path: content[:300] if number % 10 == 0 else content for number, (path, content) in enumerate(files.items())
    }
    rule = "at least 95.0 % of the files are images that can be read. Observed: 90 %"
    with pytest.raises(RefusedError, match=refused(rule)):
        validated(broken)
    assert len(read_quarantine(tmp_path / "dataset")) == 4
    assert "crack/0001.jpg" in (tmp_path / "r.html").read_text()


def test_a_missing_class_stops_the_run(files, validated):
    only_intact = {path: content for path, content in files.items() if path.startswith("intact")}
    with pytest.raises(RefusedError, match="both labels are there, and no other") as caught:
        validated(only_intact)
    assert "Observed: missing ['crack'], unexpected []" in str(caught.value)
    assert "at least 4 images are labelled crack. Observed: 0 images" in str(caught.value)


@pytest.mark.parametrize("shift", [-110, 110])
def test_a_shift_of_brightness_stops_the_run(files, validated, shift):
    def shifted(content):
        pixels = np.asarray(Image.open(io.BytesIO(content)), np.int16)
        return encoded((pixels + shift).clip(0, 255).astype(np.uint8))

    with pytest.raises(RefusedError, match=r"brightness is between 60 and 235 .*\. Observed: \d+ images") as caught:
        validated({path: shifted(content) for path, content in files.items()})
    assert "\n    crack/0" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        ((64, 60), "the height of every image is between 64 and 4,096 px"),
        ((4100, 64), "the width of every image is between 64 and 4,096 px"),
    ],
    ids=["small", "large"],
)
def test_an_image_of_the_wrong_size_stops_the_run(files, validated, size, rule):
    odd = changed(files["crack/0003.jpg"], lambda image: image.resize(size))
    with pytest.raises(
        RefusedError, match=refused(f"{rule}. Observed: 1 image that breaks the rule", "crack/0003.jpg")
    ):
        validated(files | {"crack/0003.jpg": odd})
