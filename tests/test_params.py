import copy
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from pipeline import embed, ingest, train, validate
from pipeline.errors import CracksError
from pipeline.params import Params, Section, load_params, named
from pipeline.params.params_file import RENAMED

ROOT = Path(__file__).parents[1]
SHIPPED = ["params.yaml", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "examples").glob("*.yaml")))]

PROBE = {
    "kind": "probe",
    "backbone": "lite",
    "n_components": 256,
    "l2_penalties": [0.1, 0.01],
    "orientations": ["walls"],
    "mosaics": {"of": ["walls"], "cells_a_side": [2, 3], "n_images": 100},
    "hairline_mosaics": {"of": ["walls"], "cells_a_side": [2], "n_images": 50},
    "seed": 0,
}
FINETUNE = {
    "kind": "finetune",
    "backbone": "lite",
    "batch_size": 16,
    "dropout": 0.2,
    "augmentation": {"flips": "horizontal", "max_rotation_turns": 0.1},
    "head": {"optimizer": "adam", "learning_rate": 0.003, "max_epochs": 3, "patience_epochs": None},
    "tuning": {"optimizer": "rmsprop", "learning_rate": 0.0001, "max_epochs": 4, "patience_epochs": 2},
    "unfreeze_from": "block_13",
    "cached_augmentations": None,
    "seed": 0,
}
CONV_HEAD = {
    "kind": "conv_head",
    "backbone": "lite",
    "map_layers": ["block_4_add", "block_10_add"],
    "tracer_size_px": 160,
    "n_channels": 128,
    "n_hidden": 256,
    "dropout": 0.3,
    "feature_dropout": 0.5,
    "batch_size": 64,
    "learning_rate": 0.001,
    "weight_decay": 0.01,
    "label_smoothing": 0.02,
    "n_epochs": 8,
    "seed": 0,
}
DOCUMENT = {
    "datasets": {
        "walls": {
            "source": "walls.zip",
            "labels": {"Riss": "crack", "heil": "intact"},
            "corrected_labels": {"0123456789abcdef": "intact"},
            "photo_pattern": "(.*)_",
            "citation": "Walls, A. Person 2020",
            "licence": "CC BY 4.0",
        },
        "drawn": {"source": "data/demo.yaml", "labels": None, "photo_pattern": None},
        "site": {"source": "data/incoming/site", "labels": None, "photo_pattern": None},
        "outlined": {
            "source": "outlined.zip",
            "masks": {"folders": {"rgb": "truth"}, "coco": None, "crack": [255], "tile_px": 128, "min_crack_px": 16},
        },
    },
    "ingest": {
        "max_files": 1000,
        "max_total_mb": 100,
        "max_file_mb": 20,
        "max_expansion": 200,
        "max_image_megapixels": 89,
    },
    "contract": {
        "min_images_per_label": 50,
        "min_decodable_share": 0.95,
        "min_minority_share": 0.05,
        "min_size_px": 64,
        "max_size_px": 4096,
        "max_copies_share": 0.05,
        "ranges": {"brightness": [60, 235], "bright_share": [0, 0.2]},
        "min_share_in_range": 0.98,
    },
    "split": {
        "train_on": ["walls"],
        "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "seed": 0,
        "copies": {"min_correlation": 0.55, "not_copies": [["0123456789abcdef", "fedcba9876543210"]]},
        "photos": {"validation": ["walls/deck-2", "drawn/any photo"]},
    },
    "embed": {"dask_address": None},
    "backbones": {
        "lite": {
            "architecture": "efficientnet-lite0",
            "image_size_px": 128,
            "feature_layers": ["head_conv"],
            "training_precision": "bf16",
        }
    },
    "candidates": {"head-only": PROBE, "all-of-it": FINETUNE, "on-maps": CONV_HEAD},
    "tracer": {"kind": "drawn_cracks", "n_steps": 4500, "seed": 0},
    "select": {"external_weight": 0.5},
    "evaluate": {"leave_one_source_out": True},
    "decide": {
        "missed_crack_cost": 5,
        "false_alarm_cost": 1,
        "prevalence": 0.3,
        "review_budget": 0.15,
    },
    "register": {"name": "cracks"},
    "monitor": {
        "log_max_mb": 1000,
        "n_reference_images": 500,
        "statistics": ["brightness", "embedding"],
        "cron": "0 6 * * *",
        "window_photos": 5,
        "windows_per_month": 4,
        "false_alarms_per_month": 0.1,
        "n_to_label": 50,
    },
    "promote": {
        "approval": "manual",
        "floors": {"f1": 0.9, "recall": 0.8},
        "max_ece": 0.1,
        "min_slice_recall": 0.5,
        "min_source_auroc": 0.75,
        "min_groups": 400,
        "margins": {"test": 0.01, "slice": 0.03, "external": 0.02, "tracer": 0.05},
        "budgets": {"p95_ms": 250, "resident_mb": 1000, "size_mb": 100},
    },
    "flow": {
        "timezone": "Europe/Berlin",
        "max_parallel_stages": 2,
        "stage_timeout_minutes": 60,
        "max_retries": 3,
        "retry_pause_s": 20,
    },
    "retention": {"dvc_cache_days": 180, "refused_models_days": 90, "flow_runs_days": 90},
    "map": {"tile_px": 256, "overlap": 0, "model_mm_per_px": None, "width_classes": [[0.1, "water"], [0.3, "soil"]]},
    "serve": {
        "poll_s": 2,
        "batch_wait_ms": 3,
        "max_batch_images": 16,
        "max_body_mb": 100,
        "max_files": 64,
        "max_image_megapixels": 4,
        "max_photo_megapixels": 89,
        "max_decoded_megapixels": 200,
        "max_seconds": 60,
        "max_requests": 64,
        "inbox": None,
        "kept_images_mb": None,
    },
    "retrain": {
        "dataset": "site",
        "cron": "0 3 * * *",
        "settle_minutes": 10,
        "max_age_days": 180,
    },
}


def parameters(value, *place):
    """Yield the place of every parameter, leaving out what a person names freely and what picks the section."""
    if not isinstance(value, dict) or (
        place and place[-1] in {"labels", "corrected_labels", "ranges", "photos", "floors", "folders"}
    ):
        return
    are_names = place in {("datasets",), ("backbones",), ("candidates",)}
    for key, inner in value.items():
        if not are_names and key != "kind":
            yield (*place, key)
        yield from parameters(inner, *place, key)


PLACES = list(parameters(DOCUMENT))


def changed(place, change):
    """Return DOCUMENT with change(section, key) applied to the section that holds `place`."""
    document = copy.deepcopy(DOCUMENT)
    section = document
    for key in place[:-1]:
        section = section[key]
    change(section, place[-1])
    return document


def with_value(place, value):
    return changed(place, lambda section, key: section.__setitem__(key, value))


@pytest.fixture
def load(tmp_path):
    def load(document):
        path = tmp_path / "params.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
        return load_params(path)

    return load


@pytest.mark.parametrize("name", SHIPPED)
def test_dvc_exp_run_with_another_value_changes_one_line_of_a_shipped_file(name, tmp_path):
    from dvc.utils.hydra import apply_overrides

    before = (ROOT / name).read_text(encoding="utf-8")
    copied = tmp_path / "params.yaml"
    copied.write_text(before, encoding="utf-8")
    apply_overrides(copied, ["split.seed=1"])
    written = copied.read_text(encoding="utf-8").splitlines()
    changed = [pair for pair in zip(before.splitlines(), written, strict=True) if len(set(pair)) > 1]
    assert changed == [("  seed: 0", "  seed: 1")], "write lists, nulls and quotes as DVC does"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_params_file_loads(name):
    params = load_params(ROOT / name)
    assert params.candidates


def test_only_the_default_params_train_on_drawn_images():
    drawn = {name for name in SHIPPED if load_params(ROOT / name).is_demo}
    assert drawn == {"params.yaml"}


def test_every_value_is_read_as_written(load):
    params = load(DOCUMENT)
    assert params.datasets["walls"].source == Path("walls.zip")
    assert params.datasets["walls"].labels == {"Riss": "crack", "heil": "intact"}
    assert params.ingest.max_total_mb == 100
    assert params.contract.ranges == {"brightness": (60, 235), "bright_share": (0, 0.2)}
    assert params.split.train_on == ("walls",)
    assert params.split.photos == {"validation": ("walls/deck-2", "drawn/any photo")}
    assert params.candidates["head-only"].kind == "probe"
    assert params.candidates["all-of-it"].tuning.patience_epochs == 2
    assert params.register_as.name == "cracks"


def test_the_document_of_these_tests_has_every_parameter():
    known = {
        field.alias or name for section in Section.__subclasses__() for name, field in section.model_fields.items()
    }
    assert {place[-1] for place in PLACES} | {"kind"} == known


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_the_error_about_a_misspelt_key_suggests_the_right_one(load, place):
    key = place[-1]
    misspelt = key[: len(key) // 2] + key[len(key) // 2 + 1 :]
    document = changed(place, lambda section, key: section.__setitem__(misspelt, section.pop(key)))
    where = re.escape(".".join([*place[:-1], misspelt]))
    with pytest.raises(CracksError, match=rf"\n  {where}: unknown parameter, did you mean {key}\?\n"):
        load(document)


@pytest.mark.parametrize(("place", "new"), RENAMED.items(), ids=lambda value: str(value))
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(load, place, new):
    document = copy.deepcopy(DOCUMENT)
    section, here = document, []
    for part in place[:-1]:
        options = [name for name in section if part in ("*", name) and (part != "*" or new in section[name])]
        here.append(options[0])
        section = section[options[0]]
    section[place[-1]] = section.pop(new)
    with pytest.raises(CracksError, match=rf"{'.'.join([*here, place[-1]])} is now called {new}"):
        load(document)


@pytest.mark.parametrize("key", ["review_share_of_cracks", "review_share_of_intact"])
def test_the_shares_that_the_review_budget_replaces_are_refused_with_what_to_write(load, key):
    with pytest.raises(CracksError, match=rf"decide\.{key} has been replaced: write decide\.review_budget, .* 0\.15"):
        load(with_value(("decide", key), 0.005))


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, 1.5])
def test_a_prevalence_is_between_none_and_all(load, prevalence):
    with pytest.raises(CracksError, match=r"decide\.prevalence: .*\(received "):
        load(with_value(("decide", "prevalence"), prevalence))


def test_a_key_that_resembles_none_is_refused_without_a_suggestion(load):
    with pytest.raises(CracksError, match=r"contract\.xyzzy: unknown parameter\n"):
        load(with_value(("contract", "xyzzy"), 1))


def test_a_candidate_may_be_called_like_a_kind(load):
    with pytest.raises(CracksError, match=r"  candidates\.probe\.batch_sise: unknown parameter"):
        load(with_value(("candidates", "probe"), {**PROBE, "batch_sise": 64}))


REQUIRED = [
    place
    for place in PLACES
    if place != ("datasets", "outlined", "masks", "tile_px")
    and place[-1]
    not in {
        "labels",
        "corrected_labels",
        "not_copies",
        "photo_pattern",
        "citation",
        "licence",
        "masks",
        "folders",
        "coco",
        "photos",
        "timezone",
        "feature_layers",
        "training_precision",
        "orientations",
        "mosaics",
        "hairline_mosaics",
        "evaluate",
        "leave_one_source_out",
        "min_source_auroc",
        "prevalence",
        "review_budget",
        "width_classes",
        "tracer",
        "tracer_size_px",
    }
]


@pytest.mark.parametrize("place", REQUIRED, ids=".".join)
def test_a_missing_parameter_is_named(load, place):
    with pytest.raises(CracksError, match=rf"\n  {re.escape('.'.join(place))}: Field required\n"):
        load(changed(place, lambda section, key: section.pop(key)))


def test_labels_and_photo_pattern_may_be_left_out(load):
    dataset = load(with_value(("datasets", "walls"), {"source": "walls.zip"})).datasets["walls"]
    assert (dataset.labels, dataset.photo_pattern) == (None, None)


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ("contract.min_images_per_label", "many", r"contract\.min_images_per_label: .* integer.* \(received 'many'\)"),
        ("contract.min_images_per_label", 0, r"contract\.min_images_per_label: .* 1 \(received 0\)"),
        ("contract.min_decodable_share", 95, r"contract\.min_decodable_share: .* 1 \(received 95\)"),
        ("contract.min_size_px", 31, r"contract\.min_size_px: .* 32 \(received 31\)"),
        ("split.seed", 0.5, r"split\.seed: .* integer.* \(received 0\.5\)"),
        ("split.train_on", [], r"split\.train_on: .* at least 1 item"),
        (
            "split.train_on",
            ["wals"],
            r"split\.train_on names 'wals', datasets has \['drawn', 'outlined', 'site', 'walls'\]",
        ),
        (
            "split.copies.not_copies",
            [["0" * 16] * 2],
            r"0{16} is paired with itself; images of the same bytes are always",
        ),
        ("split.copies.not_copies", [["walls/1.jpg", "0" * 16]], r"split\.copies\.not_copies\.0\.0: .*'walls/1.jpg'"),
        ("datasets.walls.corrected_labels", {"0" * 16: "dirt"}, r"corrected_labels\.0{16}: .*\(received 'dirt'\)"),
        ("split.copies.min_correlation", float("nan"), r"split\.copies\.min_correlation: .*\(received nan\)"),
        ("split.photos", {"tests": ["walls/a"]}, r"split\.photos\.tests\.\[key\]: .*'test'.*\(received 'tests'\)"),
        (
            "split.photos",
            {"test": ["drawn/a"]},
            r"photos\.test names 'drawn/a' of an external test set, whose photos can only be held out for validation",
        ),
        ("split.photos", {"train": ["drawn/a"]}, r"photos\.train names 'drawn/a' of an external test set"),
        ("ingest.max_files", 0, r"ingest\.max_files: .* 1 \(received 0\)"),
        ("ingest.max_total_mb", "all", r"ingest\.max_total_mb: .* integer.* \(received 'all'\)"),
        ("contract.ranges", {"brightnes": [0, 1]}, r"contract\.ranges\.brightnes\.\[key\]: .*\(received 'brightnes'\)"),
        ("contract.ranges", {"brightness": [60]}, r"contract\.ranges\.brightness\.1: Field required"),
        ("contract.ranges", {"brightness": ["low", 1]}, r"contract\.ranges\.brightness\.0: .*\(received 'low'\)"),
        ("split.fractions.test", 0.3, r"split\.fractions: .*train \+ validation \+ test must be 1, they are 1\.1"),
        ("datasets.walls", "walls.zip", r"datasets\.walls: .*\(received 'walls\.zip'\)"),
        ("datasets.walls.labels", {"Riss": "cracked"}, r"datasets\.walls\.labels\.Riss: .*\(received 'cracked'\)"),
        ("datasets.walls.labels", {True: "crack"}, r"labels: .*reads the name of a folder as True\. Put it in quotes"),
        ("datasets.walls.labels", {1: "crack"}, r"labels: .*reads the name of a folder as 1\. Put it in quotes"),
        ("datasets.walls.labels", {"Riss": "crack", "RISS": "intact"}, r"labels: .*folder '(?i:riss)' has two labels"),
        (
            "datasets.My Walls",
            {"source": "x.zip"},
            r"My Walls\.\[key\]: .*a name has only the letters a to z, digits, - and _,.*\(received 'My Walls'\)",
        ),
        ("datasets", {}, r"datasets: .* at least 1 item"),
        ("backbones.lite.image_size_px", 2048, r"backbones\.lite\.image_size_px: .* 1024 \(received 2048\)"),
        ("candidates.head-only.n_components", 0, r"candidates\.head-only\.n_components: .* 1 \(received 0\)"),
        ("candidates.head-only.l2_penalties", [0], r"candidates\.head-only\.l2_penalties\.0: .* \(received 0\)"),
        (
            "candidates.head-only.orientations",
            ["walls", "drawn"],
            r"candidates\.head-only\.orientations names 'drawn', split\.train_on has \['walls'\]",
        ),
        (
            "candidates.head-only.mosaics.of",
            ["drawn"],
            r"candidates\.head-only\.mosaics\.of names 'drawn', split\.train_on has \['walls'\]",
        ),
        (
            "candidates.head-only.hairline_mosaics.of",
            ["drawn"],
            r"candidates\.head-only\.hairline_mosaics\.of names 'drawn', split\.train_on has \['walls'\]",
        ),
        ("candidates.all-of-it.dropout", -0.1, r"candidates\.all-of-it\.dropout: .* 0 \(received -0\.1\)"),
        ("candidates.all-of-it.head.learning_rate", 0, r"head\.learning_rate: .* \(received 0\)"),
        ("candidates.head-only.kind", "prob", r"candidates\.head-only: .*'prob'.*'probe', 'finetune', 'conv_head'"),
        ("candidates.head-only", None, r"candidates\.head-only: .*\(received None\)"),
        ("candidates.all-of-it.tuning.optimizer", "sgd", r"candidates\.all-of-it\.tuning\.optimizer: .*'sgd'"),
        (
            "candidates.all-of-it.backbone",
            "vgg",
            r"candidates\.all-of-it\.backbone is 'vgg', backbones has \['lite'\]",
        ),
        ("decide.missed_crack_cost", 0, r"decide\.missed_crack_cost: .* 0 \(received 0\)"),
        ("map.width_classes", [[0.3, "soil"], [0.1, "water"]], r"map\.width_classes: .*each must be larger"),
        ("map.width_classes", [[0, "dry air"]], r"map\.width_classes\.0\.0: .*\(received 0\)"),
        ("map.width_classes", [], r"map\.width_classes: .* at least 1 item"),
        ("retrain.dataset", "sites", r"retrain\.dataset is 'sites', datasets has"),
        ("retrain.dataset", "walls", r"whose source walls\.zip is a file\. Batches join a folder"),
        ("retrain.settle_minutes", -1, r"retrain\.settle_minutes: .*\(received -1\)"),
        ("retrain.cron", "61 3 * * *", r"retrain\.cron: .* such as 0 3 \* .* out of range \(received '61 3 .*\)"),
        ("monitor.cron", "0 3 * *", r"monitor\.cron: .* such as 0 3 \* .*\(received '0 3 \* \*'\)"),
        ("monitor.cron", "0 3 31 2 *", r"monitor\.cron: .* failed to find next date"),
        ("monitor.cron", "R 3 * * *", r"monitor\.cron: .* random times are not supported"),
        ("flow.timezone", "Europe/Wien", r"flow\.timezone: .*IANA.* such as .*\(received 'Europe/Wien'\)"),
        ("flow.timezone", "Europe", r"flow\.timezone: .*IANA.*\(received 'Europe'\)"),
        ("flow.timezone", "", r"flow\.timezone: .*IANA.*\(received ''\)"),
        ("register.name", "Concrete Cracks", r"register\.name: .*\(received 'Concrete Cracks'\)"),
    ],
)
def test_an_impossible_value_is_refused_with_its_place_and_what_was_received(load, place, value, match):
    with pytest.raises(CracksError, match=match):
        load(with_value(tuple(place.split(".")), value))


def test_all_mistakes_are_reported_at_once(load):
    document = with_value(("contract", "min_size_px"), 1)
    document["split"]["seed"] = "zero"
    with pytest.raises(CracksError, match=r"(?s)contract\.min_size_px.*split\.seed.*copy one of examples/"):
        load(document)


def test_photos_may_be_left_out(load):
    assert load(changed(("split", "photos"), lambda section, key: section.pop(key))).split.photo_sides == {}


def test_photo_sides_maps_each_assigned_photo_to_its_side(load):
    photos = {"train": ["walls/1", "walls/2"], "validation": ["drawn/a/b"], "test": ["walls/3"]}
    sides = load(with_value(("split", "photos"), photos)).split.photo_sides
    assert sides == {"walls/1": "train", "walls/2": "train", "drawn/a/b": "validation", "walls/3": "test"}


def test_settings_are_found_by_their_name():
    assert named({"walls": 1, "decks": 2}, "decks", "data set") == 2


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    match = r"^There is no data set 'wals' in params\.yaml\. Known are walls, decks\.$"
    with pytest.raises(CracksError, match=match):
        named({"walls": 1, "decks": 2}, "wals", "data set")


STAGES = [
    (ingest, "dataset", ["--out"], r"data set 'nobody' in params\.yaml\. Known are demo"),
    (
        validate,
        "name",
        ["--dataset", "--context", "--report", "--page", "--result"],
        r"data set 'nobody' in params\.yaml\. Known are demo",
    ),
    (
        embed,
        "backbone",
        ["--datasets", "--manifest", "--checkpoints", "--out"],
        r"backbone 'nobody' in params\.yaml\. Known are efficientnet-lite0, mobilenet-v2",
    ),
    (
        train,
        "candidate",
        ["--datasets", "--manifest", "--features", "--checkpoints", "--out", "--scores", "--history"],
        r"candidate 'nobody' in params\.yaml\. Known are probe-lite0, finetune-mobilenet",
    ),
]


@pytest.mark.parametrize(("stage", "flag", "paths", "match"), STAGES, ids=["ingest", "validate", "embed", "train"])
def test_a_stage_with_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch, stage, flag, paths, match):
    nowhere = [part for path in paths for part in (path, str(tmp_path / path))]
    arguments = ["--params", str(ROOT / "params.yaml"), f"--{flag}", "nobody", *nowhere]
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    with pytest.raises(CracksError, match=f"There is no {match}"):
        stage.main()
    assert list(tmp_path.iterdir()) == []


def test_fractions_may_miss_one_by_rounding(load):
    params = load(with_value(("split", "fractions"), {"train": 0.7, "validation": 0.2, "test": 0.1}))
    assert 0.7 + 0.2 + 0.1 != 1
    assert params.split.fractions.test == 0.1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"the file: .*\(received None\)"),
        ("just words", r"the file: .*\(received 'just words'\)"),
        ("contract: [1, 2", r"cannot be read as YAML: .*line 1"),
    ],
)
def test_a_file_that_holds_no_params_is_refused(load, text, match):
    with pytest.raises(CracksError, match=f"(?s){match}"):
        load(text)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"register: {name: \xff}")
    with pytest.raises(CracksError, match="cannot be read as YAML: 'utf-8' codec"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CracksError, match=r"There is no .*nowhere\.yaml\. Restore it with git"):
        load_params(tmp_path / "nowhere.yaml")


def sections(value):
    """Yield every section below and including `value`."""
    if isinstance(value, BaseModel):
        yield value
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        for inner in value.values():
            yield from sections(inner)


def test_nothing_is_changed_once_it_is_read(load):
    found = list(sections(load(DOCUMENT)))
    assert {type(section) for section in found} == set(Section.__subclasses__())
    for section in found:
        for name in type(section).model_fields:
            with pytest.raises(ValidationError, match="Instance is frozen"):
                setattr(section, name, getattr(section, name))


@pytest.mark.parametrize(("train_on", "is_demo"), [(["walls"], False), (["drawn"], True), (["walls", "drawn"], True)])
def test_params_are_a_demo_if_drawn_images_are_trained_on(train_on, is_demo):
    document = with_value(("split", "train_on"), train_on)
    document["candidates"]["head-only"] |= {"orientations": [], "mosaics": None, "hairline_mosaics": None}
    assert Params.model_validate(document).is_demo is is_demo


def test_a_data_set_with_a_yaml_source_is_drawn():
    params = Params.model_validate(DOCUMENT)
    drawn = {name: dataset.is_drawn for name, dataset in params.datasets.items()}
    assert drawn == {"walls": False, "drawn": True, "site": False, "outlined": False}


def test_a_margin_that_needs_more_groups_is_refused_with_the_number_needed(load):
    with pytest.raises(CracksError, match=r"min_groups is 368, a margin of 0\.01 needs 369"):
        load(with_value(("promote", "min_groups"), 368))
    assert load(with_value(("promote", "min_groups"), 369)).promote.min_groups == 369
