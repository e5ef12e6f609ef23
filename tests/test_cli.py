import json
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from drawn_data import changed, drawn_files, write_files
from page_reader import Page
from PIL import Image

from pipeline import cli
from pipeline.commands import repro
from pipeline.commands.images import OUTSIDE_A_PROJECT
from pipeline.errors import UnavailableError
from pipeline.params import Map
from pipeline.registry import versions

ROOT = Path(__file__).parent.parent
HEAVY = ["great_expectations", "keras", "mlflow", "numpy", "pandas", "prefect", "sklearn", "tensorflow"]
HELP = f"""
import sys
from pipeline.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, [name for name in {HEAVY} if name in sys.modules])
"""
SCORES = {"n": 1234, "f1": 0.98765, "auroc": 0.99, "ece": 0.0123}
METRICS = {
    "demo": True,
    "candidate": "probe",
    "test": SCORES,
    "external": {"bridge": {**SCORES, "n": 7, "auroc": None}},
}


@pytest.fixture
def cracks(tmp_path, monkeypatch):
    """A function that runs the command line in an empty project, with an exit code where it is not 0."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # which MLflow sets itself; as good as unset

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cracks", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return 0

    return run


def write_reports(folder, version="3"):
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps(METRICS))
    registered = {"name": "cracks", "version": version, "run_id": version and "a"}
    (folder / "registered.json").write_text(json.dumps(registered))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([name, "--help"] for name in ("predict", "map", "audit", "worth-labelling", "promote", "summary")),
        [],
    ],
)
def test_help_is_printed_without_slow_imports(arguments):
    finished = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == f"{0 if arguments else 2} []"


def test_help_names_every_command(cracks, capsys):
    assert cracks("--help") == 0
    commands = re.findall(r"^    ([\w-]+)", capsys.readouterr().out, re.MULTILINE)
    assert commands == [
        "predict",
        "map",
        "audit",
        "data-docs",
        "batches",
        "worth-labelling",
        "promote",
        "approve",
        "rollback",
        "history",
        "check",
        "registered",
        "summary",
    ]


@pytest.mark.parametrize("stage", yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
@pytest.mark.filterwarnings("ignore:'pipeline.* found in sys.modules:RuntimeWarning")  # by other tests
def test_every_stage_prints_help(stage, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [stage, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(f"pipeline.{stage}", run_name="__main__", alter_sys=True)
    assert "--params PARAMS" in capsys.readouterr().out


def test_the_summary_shows_scores_and_the_version(cracks, capsys):
    write_reports(Path("reports"))
    assert cracks("summary") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Demo: drawn images. These numbers say nothing about real concrete.",
        "Best candidate, chosen on validation: probe",
        "  test: F1 0.9877, AUROC 0.9900, ECE 0.0123, 1234 images",
        "  bridge: F1 0.9877, AUROC none, ECE 0.0123, 7 images",
        "Registered: cracks version 3, alias challenger",
        "Report: reports/report.html",
    ]


def test_the_summary_of_an_experiment_says_that_nothing_was_registered(cracks, capsys):
    write_reports(Path("elsewhere"), version=None)
    assert cracks("summary", "--reports", "elsewhere") == 0
    out = capsys.readouterr().out
    assert "Registered: nothing, this was an experiment" in out
    assert "challenger" not in out


@pytest.mark.parametrize("name", ["scores.json", "registered.json"])
def test_a_summary_before_the_first_run_says_what_to_do(cracks, capsys, name):
    write_reports(Path("reports"))
    (Path("reports") / name).unlink()
    assert cracks("summary") == 2
    assert capsys.readouterr().err == f"error: There is no reports/{name}. Run `make run` first.\n"


def test_a_source_that_is_missing_is_found_before_a_stage_runs(cracks, capsys):
    assert cracks("check") == 2
    assert "The source data/demo.yaml named in params.yaml does not exist" in capsys.readouterr().err
    Path("data").mkdir()
    shutil.copy(ROOT / "data" / "demo.yaml", "data")
    assert cracks("check", "--params", "other.yaml") == 2
    assert "There is no other.yaml" in capsys.readouterr().err


@pytest.fixture
def ready(cracks, empty_store):
    """The command line in a project that can be trained."""
    Path("data").mkdir()
    shutil.copy(ROOT / "data" / "demo.yaml", "data")
    Path("mlflow").mkdir()
    shutil.copy(empty_store, "mlflow/mlflow.db")
    assert cracks("check") == 0
    return cracks


def test_a_tracking_store_that_cannot_be_used_is_found_before_a_stage_runs(ready, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    assert ready("check") == 2
    assert "did you mean http://localhost:5000?" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with sqlite3.connect("mlflow/mlflow.db") as store:
        store.execute(
            "create trigger no_more before insert on experiment_tags begin select raise(fail, 'readonly database'); end"
        )
        store.execute("delete from experiment_tags")
    assert ready("check") == 2
    assert "cannot be opened or written" in capsys.readouterr().err


def test_a_full_disk_is_found_before_a_stage_runs(ready, monkeypatch, capsys):
    monkeypatch.setattr(repro, "MIN_FREE_GB", 10**9)
    assert ready("check") == 2
    assert re.search(
        r"GB are free on the disk of .*, about 1000000000\.0 GB are needed\. Make room", capsys.readouterr().err
    )


def test_the_exit_code_says_whether_the_store_has_the_model(cracks, monkeypatch):
    asked = []
    monkeypatch.setattr(versions, "is_registered", lambda path: asked.append(path) or len(asked) == 1)
    assert cracks("registered") == 0
    assert cracks("registered", "--reports", "elsewhere") == 1
    assert asked == [Path("reports/registered.json"), Path("elsewhere/registered.json")]


def test_an_unavailable_store_has_its_own_exit_code(cracks, monkeypatch, capsys):
    def fail(path):
        raise UnavailableError("The store is away.")

    monkeypatch.setattr(versions, "is_registered", fail)
    assert cracks("registered") == 4
    assert capsys.readouterr().err == "error: The store is away.\n"


@pytest.fixture
def model(dark_is_crack):
    return dark_is_crack


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, level in (("dark.png", 0), ("light.png", 255)):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image, and not named like one")
    return folder


def test_predict_writes_a_row_for_each_image_of_a_folder(cracks, model, photos, caplog):
    assert cracks("predict", photos, "--model", model, "--out", "out/scores.csv") == 0
    table = pd.read_csv("out/scores.csv")
    assert list(table) == ["path", "probability", "label", "reason", "error"]
    assert table["path"].tolist() == [str(photos / "dark.png"), str(photos / "light.png")]
    assert table["label"].tolist() == ["crack", "intact"]
    assert f"Scoring 2 images with the model in {model}" in caplog.messages
    assert caplog.messages[-1] == "out/scores.csv: 1 crack, 1 intact"


def test_predict_says_how_many_files_it_could_not_read(cracks, model, photos, caplog):
    (photos / "broken.jpg").write_text("no image")
    assert cracks("predict", photos, "--model", model, "--out", "scores.csv") == 0
    assert len(pd.read_csv("scores.csv")) == 3
    expected = "1 files could not be read; see the column `error` of scores.csv:\n  1 file: not an image"
    assert caplog.messages[-1] == expected


def test_predict_fails_where_no_file_can_be_read(cracks, model, photos, capsys):
    (photos / "broken.jpg").write_text("no image")
    assert cracks("predict", photos / "broken.jpg", "--model", model, "--out", "scores.csv") == 2
    assert "No image could be read; scores.csv has the reason of each:\n  1 file: " in capsys.readouterr().err
    assert Path("scores.csv").read_text().splitlines()[1].endswith(",,,not an image")


@pytest.mark.parametrize("missing", ["nowhere", "nowhere.jpg"])
def test_predict_names_a_path_that_does_not_exist_before_it_loads_a_model(cracks, capsys, missing):
    assert cracks("predict", missing, "--out", "scores.csv") == 2
    assert f"{missing} does not exist" in capsys.readouterr().err
    assert not Path("scores.csv").exists()


@pytest.fixture
def wall_photo(tmp_path):
    path = tmp_path / "wall photos" / "wall.jpg"
    path.parent.mkdir()
    Image.fromarray(np.full((300, 400, 3), 255, np.uint8)).save(path)
    return path


def test_map_writes_a_page_and_does_not_map_its_own_output(cracks, model, wall_photo, caplog):
    out = wall_photo.parent / "maps"
    for _ in range(2):
        assert cracks("map", wall_photo.parent, "--model", model, "--out", out) == 0
        assert f"{out / 'index.html'}: 1 photos mapped, 0 failed" in caplog.messages
        caplog.clear()
    assert len(pd.read_csv(out / "summary.csv")) == 1
    assert len(pd.read_csv(out / "wall.tiles.csv")) == 4


def test_map_says_why_a_photo_was_not_mapped_and_fails_where_none_was(cracks, model, wall_photo, caplog, capsys):
    broken = wall_photo.with_name("broken.jpg")
    broken.write_text("no image")
    assert cracks("map", wall_photo, broken, "--model", model, "--out", "maps") == 0
    assert f"not mapped: {broken}: not an image" in caplog.messages
    assert cracks("map", broken, "--model", model, "--out", "other") == 2
    assert "No photo could be mapped:\n  1 file: not an image" in capsys.readouterr().err


def test_map_lists_the_first_twenty_photos_that_were_not_mapped(cracks, model, wall_photo, caplog):
    for number in range(23):
        wall_photo.with_name(f"broken-{number:02}.jpg").write_text("no image")
    assert cracks("map", wall_photo.parent, "--model", model, "--out", "maps") == 0
    assert sum(message.startswith("not mapped: ") for message in caplog.messages) == 20
    assert f"and 3 more; see the column `error` of {Path('maps/summary.csv')}" in caplog.messages


@pytest.mark.parametrize("value", ["0", "nan", "inf"])
def test_map_refuses_an_impossible_ground_resolution_before_it_loads_a_model(cracks, wall_photo, capsys, value):
    assert cracks("map", wall_photo, "--out", "maps", "--mm-per-px", value) == 2
    assert f"--mm-per-px is {value}, it must be more than 0" in capsys.readouterr().err
    assert not Path("maps").exists()


@pytest.mark.parametrize(("command", "out"), [("predict", "scores.csv"), ("map", "maps")])
@pytest.mark.parametrize("value", ["0", "1", "-0.2", "nan", "ten"])
def test_a_share_of_cracks_that_is_none_or_all_or_no_share_is_refused(
    cracks, wall_photo, model, capsys, command, out, value
):
    assert cracks(command, wall_photo, "--model", model, "--out", out, f"--prevalence={value}") == 2
    assert f"argument --prevalence: {value} is no share of cracks" in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.parametrize(("command", "out"), [("predict", "scores.csv"), ("map", "maps")])
def test_a_model_that_does_not_record_what_share_of_cracks_it_assumes_is_not_corrected(
    cracks, wall_photo, model, capsys, command, out
):
    assert cracks(command, wall_photo, "--model", model, "--out", out, "--prevalence", "0.1") == 2
    assert "not recorded what share of cracks this model assumes" in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.fixture
def walls(tmp_path):
    """A folder with five images of each label, a mirrored copy, one that has the other label, and a broken file."""
    files = drawn_files(n=5)
    files |= {"crack/copy.jpg": changed(files["crack/0001.jpg"]), "intact/copy.jpg": changed(files["crack/0002.jpg"])}
    return write_files(files | {"crack/broken.jpg": b"no image"}, tmp_path / "walls")


def test_an_audit_prints_figures_and_broken_rules_and_writes_the_page(cracks, walls, capsys):
    assert cracks("audit", walls, "--out", "pages/walls.html") == 0
    lines = capsys.readouterr().out.splitlines()
    table = dict(re.split(r" {2,}", line) for line in lines if not line.startswith(("broken", "Pictures")))
    assert table == {
        "images": "12",
        "labelled crack": "6",
        "labelled intact": "6",
        "crack, distinct by bytes": "6",
        "intact, distinct by bytes": "6",
        "crack, distinct by content": "5",
        "intact, distinct by content": "6",
        "copies: mirrored left-right": "2",
        "images with a copy of the other label": "2",
        "files that cannot be read": "1",
        "images and files left out": "0",
        "test images a random 80/20 split would leak": "26.7 %",
    }
    assert len({len(line) for line in lines[: len(table)]}) == 1
    assert "broken: no image has a copy with the other label. Observed: 2 images that break the rule" in lines
    assert lines[-1] == "Pictures: pages/walls.html"
    page = Page(Path("pages/walls.html").read_text(encoding="utf-8"))
    assert "no image has a copy with the other label" in page.text
    assert "crack/broken.jpg" in page.text


def test_data_docs_need_a_validation_first(cracks, capsys):
    assert cracks("data-docs") == 2
    assert "no validation result in" in capsys.readouterr().err


def test_an_audit_reads_photos_from_names_by_a_pattern(cracks, walls, capsys):
    assert cracks("audit", walls, "--photo-pattern", r"(\d+)\.jpg") == 0
    assert "broken: the photo of every image is known. Observed: 2 images" in capsys.readouterr().out
    assert Path("audit.html").exists()


def test_an_audit_takes_labels_follows_links_and_counts_what_it_leaves_out(cracks, walls, tmp_path, caplog, capsys):
    (walls / "crack").rename(walls / "Riß")
    (walls / "intact").rename(tmp_path / "elsewhere")
    (walls / "heil").symlink_to(tmp_path / "elsewhere")
    more = {"a.HEIC": b"a photo", "b.jpg.xml": b"<xml/>", ".trash/Riß/c.jpg": b"deleted", "Riß/1.cracks.jpg": b"drawn"}
    write_files(more, walls)
    assert cracks("audit", walls, "--label", "RISS=crack", "--label", "heil=intact") == 0
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    counts = {"images 12", "labelled crack 6", "files that cannot be read 2", "images and files left out 3"}
    assert counts <= set(lines)
    (listed,) = [message for message in caplog.messages if "files in quarantine" in message]
    assert "5 files in quarantine\n  1 file: not an image\n  1 file: a HEIC picture, which is not read." in listed
    assert "1 file: hidden, or in a hidden folder" in listed
    assert "1 file: not a picture (.xml)" in listed
    assert "1 file: a picture that `cracks map` has drawn" in listed


def test_an_audit_of_a_source_in_params_has_its_settings(cracks, walls, tmp_path, capsys):
    (walls / "crack").rename(walls / "CD")
    (walls / "intact").rename(walls / "UD")
    values = yaml.safe_load((tmp_path / "params.yaml").read_text(encoding="utf-8"))
    settings = {"labels": {"CD": "intact", "UD": "crack"}, "photo_pattern": r"(\d+)\.jpg"}
    values["datasets"]["walls"] = {"source": str(walls.relative_to(tmp_path))} | settings
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert cracks("audit", walls) == 0
    said = re.sub(" +", " ", capsys.readouterr().out)
    assert "labelled intact 6" in said
    assert "broken: the photo of every image is known. Observed: 2 images" in said
    assert cracks("audit", walls, "--label", "CD=crack", "--label", "UD=intact") == 0
    assert "labelled crack 6" in re.sub(" +", " ", capsys.readouterr().out)


@pytest.mark.slow
def test_an_audit_of_labels_of_too_few_images_says_so_and_writes_nothing(cracks, walls, capsys):
    for path in sorted((walls / "intact").iterdir())[4:]:
        path.unlink()
    assert cracks("audit", walls, "--labels") == 2
    said = capsys.readouterr().err
    assert re.search(r"error: Labels cannot be audited: [1-4] photos or groups of copies are labelled intact", said)
    assert not list(Path().glob("audit*"))


def test_an_audit_exports_one_image_or_more(cracks, walls, capsys):
    assert cracks("audit", walls, "--export", "review", "--first", "0") == 2
    assert "--first is 0, but it is a number of images to export, 1 or more" in capsys.readouterr().err
    assert not Path("review").exists()


@pytest.mark.parametrize("label", ["CD", "CD=cracked", "=crack"])
def test_an_audit_refuses_a_label_that_is_none(cracks, walls, label, capsys):
    assert cracks("audit", walls, "--label", label) == 2
    assert f"'{label}' is not FOLDER=crack or FOLDER=intact, such as CD=crack" in capsys.readouterr().err


def test_an_audit_reads_the_current_folder(cracks, walls, monkeypatch, capsys):
    monkeypatch.chdir(walls)
    assert cracks("audit", ".", "--out", "../page.html") == 0
    assert "broken: no image has a copy with the other label" in capsys.readouterr().out


def test_an_audit_of_a_missing_source_says_what_to_do(cracks, capsys):
    assert cracks("audit", "nowhere", "--out", "page.html") == 2
    assert "The source nowhere does not exist" in capsys.readouterr().err
    assert not Path("page.html").exists()


def test_map_writes_nothing_over_a_file_of_a_person_that_has_the_name_of_a_report(cracks, model, wall_photo, caplog):
    annotations = wall_photo.with_suffix(".json")
    for content in ('{"shapes": []}', "[]"):
        annotations.write_text(content)
        other = wall_photo.with_name("other.jpg")
        other.write_bytes(wall_photo.read_bytes())
        assert cracks("map", wall_photo, other, "--model", model, "--out", wall_photo.parent) == 0
        assert f"not mapped: {wall_photo}: {annotations} is there and was not written by this command" in caplog.text
        assert annotations.read_text() == content
        caplog.clear()


def test_without_a_project_photos_are_cut_as_by_the_shipped_params():
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert Map(**shipped["map"]) == Map(**OUTSIDE_A_PROJECT)
