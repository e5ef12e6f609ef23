import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_bombs import jpeg_of_scans
from PIL import Image

from pipeline.crack_maps import batch_prediction
from pipeline.crack_maps.batch_prediction import log_rows, parts_of, run, score, unfinished_folder
from pipeline.data.sources import read_image_file
from pipeline.errors import CracksError
from pipeline.inference import served
from pipeline.inference.served import ServedModel
from pipeline.models.decision import DECISION_FILE
from pipeline.monitoring.prediction_log import PredictionLog
from pipeline.registry.model_lookup import found_model

COLUMNS = ["path", "probability", "label", "reason", "error"]


@pytest.fixture(scope="module")
def model(dark_is_crack):
    return ServedModel.load(dark_is_crack)


@pytest.fixture
def found(dark_is_crack):
    with found_model("cracks", str(dark_is_crack)) as found:
        yield found


def save_grey(path, level, size=(8, 8)):
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def table_of(path):
    return pd.read_csv(path, keep_default_na=False)


def test_each_image_has_its_path_probability_and_label(tmp_path, found):
    levels = {"dark.png": 0, "middle.png": 115, "light.png": 255}
    paths = [save_grey(tmp_path / name, level) for name, level in levels.items()]
    assert run(found, paths, tmp_path / "out" / "scores.csv") == {"crack": 1, "review": 1, "intact": 1}
    table = table_of(tmp_path / "out" / "scores.csv")
    assert list(table) == COLUMNS
    assert table["path"].tolist() == [str(path) for path in paths]
    assert table["label"].tolist() == ["crack", "review", "intact"]
    assert table["probability"].tolist() == sorted(table["probability"], reverse=True)
    assert table["error"].tolist() == ["", "", ""]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.csv"]


@pytest.fixture
def assuming(dark_is_crack, tmp_path):
    """The model, which assumes a share of cracks of one half."""
    shutil.copytree(dark_is_crack, tmp_path / "assuming")
    file = tmp_path / "assuming" / DECISION_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prevalence": 0.5}))
    with found_model("cracks", str(tmp_path / "assuming")) as found:
        yield found


def test_a_stated_share_of_cracks_corrects_probabilities_and_labels_but_not_what_is_logged(tmp_path, assuming):
    paths = [save_grey(tmp_path / f"{level}.png", level) for level in (0, 115, 255)]
    (tmp_path / "note.png").write_text("no image")
    paths.append(tmp_path / "note.png")
    noted = []
    run(assuming, paths, tmp_path / "as-it-is.csv")
    run(assuming, paths, tmp_path / "rare.csv", on_scored=noted.append, prevalence=0.02)
    plain, rare = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("as-it-is", "rare"))
    assert list(rare) == [*COLUMNS, "assumed_prevalence", "prevalence"]
    odds = plain["probability"] / (1 - plain["probability"]) * (0.02 / 0.98)
    np.testing.assert_allclose(rare["probability"][:3], (odds / (1 + odds))[:3], rtol=1e-5)
    assert rare["label"].tolist()[:3] == ["crack", "intact", "intact"]
    assert rare[["assumed_prevalence", "prevalence"]].to_numpy().tolist()[:3] == [[0.5, 0.02]] * 3
    logged = log_rows(pd.concat(noted), "1", None, datetime(2026, 5, 4, tzinfo=UTC))
    np.testing.assert_allclose(logged["probability"], plain["probability"][:3], rtol=1e-5)
    assert unfinished_folder(assuming, paths, tmp_path / "a.csv") != unfinished_folder(
        assuming, paths, tmp_path / "a.csv", 0.02
    )


def test_where_it_is_not_known_what_the_model_assumes_a_stated_share_is_refused(tmp_path, found):
    with pytest.raises(CracksError, match="not recorded what share of cracks this model assumes"):
        run(found, [save_grey(tmp_path / "a.png", 0)], tmp_path / "scores.csv", prevalence=0.1)


def test_no_name_is_a_formula_and_none_hides_its_direction(tmp_path, found, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "a\u202egpj.png", "caf\udce9.png", "a\rb.png", "a\nb.png"]
    run(found, [save_grey(Path(name), 0) for name in names], tmp_path / "scores.csv")
    shown = ["'=1+1.png", r"a\u202egpj.png", r"caf\udce9.png", r"a\rb.png", r"a\nb.png"]
    assert table_of("scores.csv")["path"].tolist() == shown


def test_a_name_of_digits_keeps_its_zeros(tmp_path, found, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_grey(Path("007.png"), 0).rename("007")
    run(found, [Path("007")], tmp_path / "scores.csv")
    assert pd.read_csv("scores.csv", dtype=str)["path"].tolist() == ["007"]


def test_images_of_mixed_sizes_keep_their_order(tmp_path, model):
    sizes = [(8, 8), (9, 7), (8, 8), (300, 20)]
    paths = [save_grey(tmp_path / f"{n}.png", 60 * n, size) for n, size in enumerate(sizes)]
    probabilities = score(model, [read_image_file(path) for path in paths])["probability"].tolist()
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(set(probabilities)) == 4


def test_unreadable_files_are_rows_with_their_error(tmp_path, found):
    good, other = save_grey(tmp_path / "good.png", 0), save_grey(tmp_path / "other.png", 255)
    note, cut, missing = tmp_path / "note.png", tmp_path / "cut.jpg", tmp_path / "missing.png"
    bomb, nameless = tmp_path / "bomb.jpg", tmp_path / "nameless.png"
    nameless.symlink_to("n" * 300)
    bomb.write_bytes(jpeg_of_scans(200_000, size_px=2000))
    note.write_text("no image")
    save_grey(cut, 0, (200, 200))
    cut.write_bytes(cut.read_bytes()[:-400])  # its header can still be read
    counts = run(found, [note, good, cut, missing, other, bomb, nameless], tmp_path / "scores.csv")
    assert counts == {"": 5, "crack": 1, "intact": 1}
    table = table_of(tmp_path / "scores.csv").set_index("path")
    assert table.loc[[str(good), str(other)], "label"].tolist() == ["crack", "intact"]
    assert table.loc[str(note), "error"] == "not an image"
    assert "truncated" in table.loc[str(cut), "error"]
    assert table.loc[str(missing), "error"] == "No such file or directory"
    assert table.loc[str(nameless), "error"] == "File name too long"
    assert table.loc[str(bomb), "error"] == "it has more than 100 scans"
    assert (table.loc[[str(note), str(cut), str(missing), str(bomb)], ["probability", "label"]] == "").all(axis=None)


def test_a_photo_on_its_side_is_scored_upright(tmp_path, model):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert score(model, [read_image_file(path)])["label"].tolist() == ["crack"]


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path):
    path = tmp_path / "disk.jpg"
    with path.open("wb") as file:
        file.truncate(600_000_001)  # takes no room on the disk
    assert read_image_file(path) == "larger than 600 MB"


def test_a_part_is_bounded_in_files_and_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_prediction, "PART_IMAGES", 3)
    monkeypatch.setattr(batch_prediction, "MAX_PART_BYTES", 10)
    paths = []
    for number, n_bytes in enumerate([4, 4, 4, 99, 1, 1, 1, 1, 5, 5, 1]):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(bytes(n_bytes))
    paths.append(tmp_path / "missing.jpg")
    parts = parts_of(paths)
    assert [len(part) for part in parts] == [2, 1, 1, 3, 2, 3]
    assert [path for part in parts for path in part] == paths


def test_large_images_go_through_the_network_few_at_a_time(tmp_path, model, monkeypatch):
    monkeypatch.setattr(served, "MAX_BATCH_PIXELS", 300)
    sizes = [(8, 8)] * 10 + [(10, 11)] * 5 + [(40, 40)] * 2
    paths = [save_grey(tmp_path / f"{n}.png", 15 * n, size) for n, size in enumerate(sizes)]
    batches = []

    class Noting:
        decision = model.decision

        def outputs(self, batch):
            batches.append(batch.shape[:3])
            return model.outputs(batch)

        def labels(self, outputs, prevalence):
            return model.labels(outputs, prevalence)

    table = score(Noting(), [read_image_file(path) for path in paths])
    small, middle, large = (8, 8), (10, 11), (40, 40)
    expected = [(4, *small), (4, *small), (2, *small), (2, *middle), (2, *middle), (1, *middle), (1, *large)]
    assert sorted(batches) == sorted([*expected, (1, *large)])
    assert table["probability"].tolist() == sorted(table["probability"], reverse=True)


@pytest.fixture
def many(tmp_path):
    """Ten images, which make three parts of four."""
    return [save_grey(tmp_path / f"{n}.png", 25 * n) for n in range(10)]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(batch_prediction, "PART_IMAGES", 4)


def test_a_killed_run_resumes(tmp_path, found, many, small_parts, monkeypatch):
    run(found, many, tmp_path / "whole.csv")
    scored = []

    def die_in_the_third_part(model, contents, **_):
        scored.append(len(contents))
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(model, contents)

    monkeypatch.setattr(batch_prediction, "score", die_in_the_third_part)
    with pytest.raises(KeyboardInterrupt):
        run(found, many, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()
    run(found, many, tmp_path / "scores.csv")
    assert scored == [4, 4, 2, 2]
    assert (tmp_path / "scores.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert list(tmp_path.glob(".*")) == []


def test_a_changed_image_is_not_taken_from_an_earlier_run(tmp_path, found, many):
    before = unfinished_folder(found, many, tmp_path / "scores.csv")
    save_grey(many[3], 7, (9, 9))
    assert unfinished_folder(found, many, tmp_path / "scores.csv") != before


def test_the_log_gets_all_readable_images_with_their_photo(tmp_path, found, small_parts):
    paths = [save_grey(tmp_path / f"deck{n // 3}-{n}.png", 40 * n) for n in range(6)]
    broken = tmp_path / "deck1-9.png"
    broken.write_text("no image")
    noted, time = [], datetime(2026, 5, 4, tzinfo=UTC)
    run(found, [*paths, broken], tmp_path / "scores.csv", on_scored=noted.append)
    rows = pd.concat([log_rows(table, found.version, r"(deck\d)-", time) for table in noted])
    log = PredictionLog(tmp_path / "log")
    log.append(rows)
    read_back = log.read()
    assert sorted(read_back["path"]) == sorted(str(path) for path in paths)
    assert set(read_back["photo"]) == {"deck0", "deck1"}
    assert read_back["brightness"].tolist() == pytest.approx([40 * n for n in range(6)])
    assert read_back["model_version"].unique().tolist() == [found.version]
    scores = table_of(tmp_path / "scores.csv")["probability"][:6].astype(float)
    assert read_back["probability"].tolist() == pytest.approx(scores.tolist(), rel=1e-5)


def test_the_log_gets_many_images_at_a_time_and_the_last_ones_when_a_run_is_interrupted(
    tmp_path, found, many, small_parts, monkeypatch
):
    monkeypatch.setattr(batch_prediction, "LOGGED_IMAGES", 6)
    noted = []
    run(found, many, tmp_path / "scores.csv", on_scored=noted.append)
    assert [len(table) for table in noted] == [8, 2]
    assert pd.concat(noted)["path"].tolist() == [str(path) for path in many]

    def interrupted(model, contents, **_):
        if len(contents) == 2:
            raise KeyboardInterrupt
        return score(model, contents, with_statistics=True)

    monkeypatch.setattr(batch_prediction, "score", interrupted)
    monkeypatch.setattr(batch_prediction, "LOGGED_IMAGES", 100)
    noted.clear()
    with pytest.raises(KeyboardInterrupt):
        run(found, many, tmp_path / "again.csv", on_scored=noted.append)
    assert [len(table) for table in noted] == [8]
