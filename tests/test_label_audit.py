import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from archive_writer import write_zip
from drawn_data import drawn_files, in_process
from page_reader import Page
from sklearn.metrics import roc_auc_score
from test_contract_page import page_of, tile

from pipeline import cli
from pipeline.data import dataset_reader
from pipeline.data.contract_page import SuspectLabels
from pipeline.data.images import decode
from pipeline.data.suspect_labels import first_to_review, rank, sentences_on_sides
from pipeline.errors import CracksError
from pipeline.project import INBOX, MANIFEST
from pipeline.training.label_audit import (
    PlantedCheck,
    check_groups,
    contradicted,
    cross_fit,
    doubts,
    planted_check,
    principal_components,
    sentences,
)

ROOT = Path(__file__).parents[1]
NO_MANIFEST = pd.DataFrame(columns=["sha256", "split"])
SITE = Path("data/incoming/site")
FILES = drawn_files(n=40, seed=5, mirrored=4)
WRONG = {"crack/0002.jpg", "crack/0020.jpg", "crack/0031.jpg", "intact/0007.jpg", "intact/0019.jpg", "intact/0012.jpg"}


def with_wrong_label(path):
    """The place of a file in the folder of the other label."""
    folder, name = path.split("/")
    return f"{'intact' if folder == 'crack' else 'crack'}/wrong-{name}"


def separable(n, seed=0):
    """Features that separate the labels, (n, 12), and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    return rng.normal(0, 1, (n, 12)) + np.where(labels, 1.2, -1.2)[:, None], labels


def test_no_classifier_has_seen_the_group_of_the_image_that_it_judges():
    rng = np.random.default_rng(0)
    features, labels = np.tile(rng.normal(size=(60, 200)), (6, 1)), np.tile(rng.random(60) < 0.5, 6)
    components, copies = principal_components(features.astype(np.float16)), np.tile(np.arange(60), 6)
    assert 0.3 < roc_auc_score(labels, cross_fit(components, labels, copies)) < 0.7
    assert roc_auc_score(labels, cross_fit(components, labels, np.arange(360))) > 0.95  # what copies would tell


def test_labels_made_wrong_are_the_first_of_the_ranking_every_time():
    features, labels = separable(400)
    components = principal_components(features.astype(np.float16))
    wrong = np.arange(5, 400, 40)
    labels[wrong] ^= True
    orders = [np.argsort(-doubts(labels, cross_fit(components, labels, np.arange(400)))) for _ in range(2)]
    assert set(orders[0][: len(wrong)]) == set(wrong)
    np.testing.assert_array_equal(*orders)


def test_the_check_counts_what_is_found_of_labels_made_wrong_in_memory():
    features, labels = separable(400)
    before = labels.copy()
    check = planted_check(features, labels, np.arange(400), share=0.05, seed=1)
    assert (check.n_planted, check.found) == (20, (1.0, 1.0))
    assert 10 <= round(check.share_contradicted * 20) <= check.n_contradicted <= 20
    np.testing.assert_array_equal(labels, before)
    shuffled = np.random.default_rng(2).permutation(features)
    assert planted_check(shuffled, labels, np.arange(400), share=0.05, seed=1).found[0] < 0.4


def test_a_label_is_contradicted_where_the_image_is_as_like_the_others_as_they_are_on_average():
    labels = np.array([True, True, True, False, False, False])
    probabilities = np.array([0.9, 0.7, 0.2, 0.1, 0.3, 0.8])  # cracks have 0.6 on average, intact images 0.4
    assert contradicted(labels, probabilities).tolist() == [False, False, True, False, False, True]
    assert doubts(labels, probabilities).tolist() == pytest.approx([0.1, 0.3, 0.8, 0.1, 0.3, 0.8])


@pytest.mark.parametrize(
    ("labels", "groups", "words"),
    [
        ([True] * 20, range(20), "0 photos or groups of copies are labelled intact"),
        ([True] * 4 + [False] * 16, range(20), "4 photos or groups of copies are labelled crack"),
        ([True, False] * 10, [0] * 18 + [1, 2], "2 photos or groups of copies are labelled crack"),
    ],
)
def test_one_label_or_too_few_photos_cannot_be_audited(labels, groups, words):
    with pytest.raises(CracksError, match=f"{words}, and 5 are needed of each label. Audit the data set"):
        check_groups(np.array(labels), np.array(groups))


def inventory(**columns):
    n = len(columns["sha256"])
    given = {"path": [f"{row}.jpg" for row in range(n)], "batch": "", "label": "crack", "photo": None, "reviewer": None}
    return pd.DataFrame(given | columns, index=range(n))


def test_the_ranking_has_the_most_doubtful_first_with_its_side_and_ties_in_order():
    images = inventory(sha256=["a", "b", "c", "d"])
    manifest = pd.DataFrame({"sha256": ["c", "b"], "split": ["test", "train"]})
    ranking = rank(images, np.array([0.9, 0.2, 0.2, 0.05]), manifest)
    assert ranking["path"].tolist() == ["3.jpg", "1.jpg", "2.jpg", "0.jpg"]
    assert ranking["side"].tolist() == ["", "train", "test", ""]
    assert ranking["crack_probability"].tolist() == [0.05, 0.2, 0.2, 0.9]
    (sentence,) = sentences_on_sides(ranking)
    assert sentence == (
        "Sides of the first 4: 1 train, 1 test. A label corrected on another side than train changes what models are "
        "measured with."
    )
    assert sentences_on_sides(ranking[ranking["side"] == "train"]) == ["Sides of the first 1: 1 train."]
    assert sentences_on_sides(rank(images, np.zeros(4), NO_MANIFEST)) == []


def test_what_a_person_has_reviewed_is_not_asked_again_and_no_content_twice():
    images = inventory(sha256=list("abcdef"), reviewer=[None, "ann", None, None, None, None])
    ranking = rank(images, np.array([0.7, 0.1, 0.2, 0.3, 0.9, 0.8]), NO_MANIFEST)
    chosen = first_to_review(ranking, 2)
    assert chosen.index.tolist() == [2, 3]
    same_bytes = rank(inventory(sha256=list("aab")), np.array([0.1, 0.2, 0.3]), NO_MANIFEST)
    assert first_to_review(same_bytes, 2).index.tolist() == [0, 2]


def test_the_audit_says_what_its_ranking_is_worth():
    check = PlantedCheck(103, (0.47, 0.7), 0.54, 300)
    said = sentences(np.arange(3420) < 198, check)
    assert said[0].startswith("198 of 3,420 labels are contradicted with confidence: wrong labels, and hard images")
    assert "of 103 labels that were made wrong" in said[1]
    assert "47% are in the first 5% of the ranking, 70% are in the first 10% of the ranking, 54% are" in said[1]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A project with drawn images, six of which have the wrong label, after an audit of its labels; what it printed."""
    root = tmp_path_factory.mktemp("audited")
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["datasets"] = {"site": {"source": str(SITE), "labels": {"crack": "crack", "intact": "intact"}}}
    values["contract"] |= {"min_images_per_label": 10}
    values["split"] |= {"train_on": ["site"]}
    values["retrain"] |= {"dataset": "site"}
    (root / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    files = {with_wrong_label(path) if path in WRONG else path: content for path, content in FILES.items()}
    (root / SITE).mkdir(parents=True)
    write_zip(root / SITE / "0000-first.zip", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_reader, "ProcessPoolExecutor", in_process)
        patch.chdir(root)
        patch.setenv("DVC_ROOT", str(root))
        assert run(patch, "audit", str(SITE), "--export", "review", "--first", "10") == 0
        yield root, patch


def run(patch, *arguments):
    patch.setattr(sys, "argv", ["cracks", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.slow
def test_wrong_labels_of_drawn_images_are_found_shown_and_exported(audited):
    root, _ = audited
    ranking = pd.read_csv(root / "audit-labels.csv")
    assert len(ranking) == len(FILES)
    assert {path for path in ranking["path"].head(10) if "wrong" in path} == set(map(with_wrong_label, WRONG))
    page = Page((root / "audit.html").read_text(encoding="utf-8"))
    assert "A place in the ranking is a suspicion, not a finding" in page.text
    assert "labels are contradicted with confidence" in page.text
    listed = pd.read_csv(root / "review" / "list.csv")
    assert listed["path"].tolist() == [path for path in ranking["path"] if path in set(listed["path"])]
    assert set(ranking["path"].head(10)) | {"crack/0042.jpg"} <= set(listed["path"])  # with the copy of crack/0002.jpg
    assert sorted(path.name for path in (root / "review").glob("*.jpg")) == listed["file"].tolist()
    assert not (root / "data/checkpoints/label-audit").exists() or not any(
        (root / "data/checkpoints/label-audit").iterdir()
    )


@pytest.mark.slow
def test_an_audit_of_labels_is_the_same_again_says_the_sides_and_overwrites_no_export(audited, capsys):
    root, patch = audited
    ranking = pd.read_csv(root / "audit-labels.csv", keep_default_na=False)
    sides = pd.DataFrame({"sha256": ranking["sha256"], "split": "test"})
    sides.loc[0, "split"] = "train"
    sides.to_parquet(root / MANIFEST)
    assert run(patch, "audit", str(SITE), "--labels", "--out", "again.html") == 0
    said = capsys.readouterr().out
    assert "Sides of the first 88: 87 test, 1 train. A label corrected on another side" in said
    again = pd.read_csv(root / "again-labels.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(again.drop(columns="side"), ranking.drop(columns="side"))
    assert again["side"].tolist() == ["train"] + ["test"] * 87
    assert "test side" in Page((root / "again.html").read_text(encoding="utf-8")).text
    assert run(patch, "audit", str(SITE), "--export", "review") == 2
    assert "review exists already. Give a new folder" in capsys.readouterr().err
    (root / MANIFEST).unlink()


@pytest.mark.slow
def test_what_a_person_decides_about_an_export_corrects_the_labels_where_they_are(audited):
    from pipeline.data.dataset_reader import pack_dataset
    from pipeline.inbox.batches import take_all
    from pipeline.params import load_params
    from serving.review_routes import ReviewedTile, Reviews, batch_name, cut_tile, write_archive, write_to_inbox
    from serving.uploads import Upload

    root, _ = audited
    params, now = load_params(root / "params.yaml"), datetime(2030, 1, 1, tzinfo=UTC)
    limits = params.ingest
    pack_dataset(params.datasets["site"], limits, root / "data/datasets/site")
    before = pd.read_parquet(root / "data/datasets/site/inventory.parquet")
    tiles = []
    for row in pd.read_csv(root / "review" / "list.csv").itertuples():
        wrong = {with_wrong_label(path): path.split("/")[0] for path in WRONG}
        content = (root / "review" / row.file).read_bytes()
        tile = ReviewedTile(file=0, x=0, y=0, size=64, label=wrong.get(row.path.split(".zip/")[-1], row.label))
        reviews = Reviews(reviewer="ann", model_version="7", tiles=[tile])
        tiles.append(cut_tile(Upload(row.file, content, 64 * 64), decode(content), tile, reviews, now))
    archive = write_archive(tiles, [])
    write_to_inbox(root / INBOX, batch_name(archive, now), archive)
    (taken,) = take_all(root, params, now=now, by="test")
    assert taken.file == "0001-reviews-20300101T000000Z-" + taken.file[-12:]
    pack_dataset(params.datasets["site"], limits, root / "data/datasets/site")
    after = pd.read_parquet(root / "data/datasets/site/inventory.parquet")
    assert after["sha256"].tolist() == before["sha256"].tolist()
    changed = after[after["label"] != before["label"]]
    assert set(changed["path"]) == set(map(with_wrong_label, WRONG))
    assert set(changed["reviewer"]) == {"ann"}
    assert changed["first_label"].tolist() == before.loc[changed.index, "label"].tolist()


def test_the_page_has_the_section_only_after_an_audit_of_labels():
    found = SuspectLabels((tile("Positive/9.jpg", caption="probability of a crack 0.03", name="0f3c"),), ("So.",))
    page = page_of(suspects=found)
    assert all(words in page.text for words in ("So.", "Positive/9.jpg", "probability of a crack 0.03", "0f3c"))
    assert {image["loading"] for image in page.all("img")} == {"lazy"}
    assert "Labels that look wrong" not in page_of().text
