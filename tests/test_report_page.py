import base64
import io
import re
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from page_reader import Page
from PIL import Image

from pipeline.evaluation.bootstrap import scores_with_intervals
from pipeline.evaluation.examples import Picture
from pipeline.evaluation.plots import reliability_table
from pipeline.evaluation.report_page import SIDES, DatasetFacts, render
from pipeline.evaluation.slices import slice_table
from pipeline.evaluation.unseen_sources import summarise_sources
from pipeline.models.decision import Decision
from pipeline.models.metrics import log_loss, scores

NOTHING = summarise_sources({"scores": {}, "not_measured": {}}, {})
DECISION = {"threshold": 0.31, "review_from": 0.12, "review_to": 0.74}


def drawn_predictions(rng, dataset, split, n, separation):
    """Calibrated rows: a label is drawn by its probability, so the wider the logits, the better the separation."""
    probability = 1 / (1 + np.exp(-rng.normal(-0.6, separation, n)))
    label = np.where(rng.random(n) < probability, "crack", "intact")
    paths = [f"{dataset}/{index:05d}.jpg" for index in range(n)]
    table = pd.DataFrame(
        {"dataset": dataset, "path": paths, "split": split, "label": label, "probability": probability}
    )
    looks = {"brightness": rng.uniform(50, 200, n), "sharpness": rng.uniform(5, 500, n), "size": 227}
    photo = [str(index // 60) if split == "external" else None for index in range(n)]
    surface = np.where(np.arange(n) % 3 == 0, "Walls", "Decks")
    return table.assign(group=[f"{dataset}{index // 3}" for index in range(n)], photo=photo, slice=surface, **looks)


def drawn_history(rng, n_head, n_tuning):
    epochs = np.arange(n_head + n_tuning)
    loss = 0.6 * np.exp(-epochs / 4) + 0.05 + rng.normal(0, 0.005, len(epochs))
    return pd.DataFrame(
        {
            "step": epochs,
            "phase": ["head"] * n_head + ["tuning"] * n_tuning,
            "epoch": [*range(n_head), *range(n_tuning)],
            "loss": loss,
            "val_loss": loss + 0.02 + 0.002 * epochs,
            "accuracy": 1 - loss / 3,
            "val_accuracy": 0.99 - loss / 3,
            "learning_rate": 1e-3,
        }
    )


def drawn_picture(rng, path, label, probability):
    pixels = rng.normal(150, 12, (227, 227, 1)).repeat(3, axis=2)
    if label == "crack":
        for y, x in enumerate(np.cumsum(rng.normal(0, 1.5, 227)).astype(int) + 113):
            pixels[y, max(0, x - 1) : max(0, x + 2)] -= 60
    return Picture(path, "halls", label, probability, pixels.clip(0, 255).astype(np.uint8))


def score(rows):
    labels, probabilities = (rows["label"] == "crack").to_numpy(), rows["probability"].to_numpy()
    more = scores_with_intervals(labels, probabilities, rows["group"].to_numpy(), Decision(**DECISION))
    return more | scores(labels, probabilities, DECISION["threshold"])


LEAKING = {
    "n_available": 1000,
    "n_images": 1000,
    "n_scored": 200,
    "leak_free_n_errors": 5,
    "leak_free_errors_per_thousand": 25.0,
    "leak_free_f1": 0.971,
    "random_n_errors": 1,
    "random_errors_per_thousand": 5.0,
    "random_f1": 0.993,
    "n_scored_with_copy_in_train": 73,
    "share_of_scored_with_copy_in_train": 0.365,
}


def facts(name, *, is_trained_on, **sides):
    return DatasetFacts(name, is_trained_on, f"source of {name}", dict.fromkeys(SIDES, 0) | sides, 5, 4, 3)


def layer(name, shape, n_weights=0, layers=()):
    return {"name": name, "type": "Layer", "shape": shape, "n_weights": n_weights, "layers": layers}


def report_inputs(rng, predictions):
    false = [drawn_picture(rng, f"Negative/{index:05d}.jpg", "intact", 0.32 + 0.02 * index) for index in range(12)]
    missed = [drawn_picture(rng, f"Positive/{index:05d}.jpg", "crack", 0.30 - 0.02 * index) for index in range(12)]
    return {
        "slices": slice_table(predictions, Decision(**DECISION)),
        "mistakes": {"Test": false + missed},
        "samples": {},
        "architecture": [
            layer("image", [None, None, 3]),
            layer("lite0", [1280], 3_400_000, [layer("<stem>", [8, 8, 4])]),
        ],
        "datasets": [
            facts("halls", is_trained_on=True, train=7, test=2, excluded=1),
            facts("bridges", is_trained_on=False, external=8),
        ],
        "weights": "of the start",
    }


def inputs():
    return deepcopy(drawn_inputs())


@cache
def drawn_inputs():
    rng = np.random.default_rng(7)
    predictions = pd.concat(
        [
            drawn_predictions(rng, "halls", "test", 600, 5.0),
            drawn_predictions(rng, "walls", "test", 400, 4.0),
            drawn_predictions(rng, "bridges", "external", 500, 2.5),
            drawn_predictions(rng, "tunnel", "external", 100, 2.0).assign(label="crack"),
        ],
        ignore_index=True,
    )
    test, external = (predictions[predictions["split"] == split] for split in ("test", "external"))
    candidates = {}
    for name, separation in (("probe-lite0", 3.5), ("finetune-lite0", 4.6), ("finetune-mobilenet", 4.2)):
        validation = drawn_predictions(rng, "halls", "validation", 900, separation)
        loss = log_loss((validation["label"] == "crack").to_numpy(), validation["probability"].to_numpy())
        candidates[name] = {"selection_loss": loss, **score(validation)}
    by_dataset = {name: score(rows) for name, rows in external.groupby("dataset")}
    left_out = {"scores": {"halls/Walls": score(test)}, "not_measured": {"halls/Roof": "3 cracked images"}}
    return {
        "metrics": {
            "demo": False,
            "trained_on": ["halls", "walls"],
            "candidate": "finetune-lite0",
            "split": {"n_images": 20134, "n_groups": 18871, "n_copies": 1263, "n_excluded": 12, "leaks": 0},
            "test": score(test),
            "tests": {name: score(rows) for name, rows in test.groupby("dataset")},
            "external": by_dataset,
            "sources": summarise_sources(left_out, by_dataset),
            "leakage": dict(LEAKING),
            "decision": DECISION,
        },
        "candidates": candidates,
        "histories": {
            "probe-lite0": drawn_history(rng, 5, 0).assign(l2_penalty=[0.1, 0.03, 0.01, 0.003, 0.001]),
            "finetune-lite0": drawn_history(rng, 5, 12),
            "finetune-mobilenet": drawn_history(rng, 5, 9),
        },
        "predictions": predictions,
        **report_inputs(rng, predictions),
    }


def without_pictures(given):
    return given | {"histories": {}, "mistakes": {}}


def page_of(given):
    return Page(render(**given))


@pytest.fixture
def few():
    """Inputs that render fast: no training curves, no pictures."""
    return without_pictures(inputs())


@pytest.fixture(scope="module")
def page():
    return page_of(inputs())


@pytest.fixture(scope="module")
def warning_page():
    """Of a model that no number should be believed of: demo, two leaks, no external test set."""
    given = without_pictures(inputs())
    given["metrics"] |= {"demo": True, "external": {}, "sources": NOTHING}
    given["metrics"]["split"]["leaks"] = 2
    given["predictions"] = given["predictions"].query("split == 'test'")
    return page_of(given)


def test_the_page_loads_nothing_and_has_no_scripts(page):
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"""\w+://[^\s"'<>)]*""", page.html)) == namespaces
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert {"http-equiv", "content"} <= page.all("meta")[1].keys()
    assert page.all("meta")[1]["content"].startswith("default-src 'none'")


def test_equal_inputs_give_equal_pages(few):
    assert render(**few) == render(**few)


def test_the_banner_is_there_for_the_demo_and_only_then(page, warning_page):
    assert "Demo: drawn images. These numbers say nothing about real concrete." in warning_page.text
    assert "Demo" not in page.text


def test_the_chosen_candidate_alone_is_marked_as_chosen_on_validation(page):
    assert page.row("finetune-lite0")[0] == "chosen"
    assert "chosen" not in page.row("probe-lite0") + page.row("finetune-mobilenet")
    assert (
        "finetune-lite0 was chosen for the lowest selection loss on validation; test was not used for it" in page.text
    )


def test_each_set_has_its_row_of_scores_and_a_missing_score_is_a_dash(page):
    metrics = inputs()["metrics"]
    table = page.table("All scores")
    rows = {"Test": metrics["test"]}
    rows |= {f"Test: {name}": scores for name, scores in metrics["tests"].items()}
    rows |= {f"External: {name}": scores for name, scores in metrics["external"].items()}
    assert list(rows) == ["Test", "Test: halls", "Test: walls", "External: bridges", "External: tunnel"]
    for head, shown in rows.items():
        words = [f"{shown['n']:,}"]
        for name in ("accuracy", "f1", "auroc", "balanced_accuracy", "ece", "threshold"):
            words.append("—" if shown[name] is None else f"{shown[name]:.4f}")
            if shown["interval"].get(name):
                low, high = shown["interval"][name].values()
                words.append(f"{low:.4f}\N{EN DASH}{high:.4f}")
        assert table.row(head) == words
    assert len(table.row("Test")) == 1 + 5 * 2 + 1
    assert table.row("External: tunnel").count("—") == 2


def test_a_score_is_never_rounded_to_perfect_or_to_nothing(few):
    shown = {
        1.0: "1.0000",
        1 - 1e-9: ">0.9999999",
        0.999999: "0.999999",
        0.99996: "0.99996",
        0.00003: "0.00003",
        1e-9: "<0.0000001",
        0.0: "0.0000",
    }
    scores = few["candidates"]["probe-lite0"]
    few["candidates"] = {f"candidate-{value}": scores | {"accuracy": value} for value in shown}
    page = page_of(few)
    assert {value: page.row(f"candidate-{value}")[2] for value in shown} == shown


def test_images_for_review_include_the_lower_end_of_the_band_and_exclude_the_upper(few):
    few["predictions"] = pd.DataFrame(
        {
            "dataset": "halls",
            "path": list("abcdefgh"),
            "split": ["test"] * 7 + ["external"],
            "label": ["intact", "crack", "crack", "intact", "crack", "crack", "intact", "intact"],
            "probability": [0.1, 0.1199, 0.12, 0.31, 0.7399, 0.74, 0.9, 0.5],
        }
    )
    few["metrics"] |= {"test": few["metrics"]["test"] | {"n": 7}, "external": {}}
    page = page_of(few)
    assert page.row("intact") == ["below", "0.1200", "2", "28.6", "%", "1", "1"]
    assert page.row("review") == ["between", "3", "42.9", "%", "2", "1"]
    assert page.row("crack") == ["from", "0.7400", "on", "2", "28.6", "%", "1", "1"]
    assert "From 0.1200 up to 0.7400 the model is unsure" in page.text
    assert "On test that is 42.9 % of the images (3 of 7)" in page.text
    assert "on test, that misses 1 of 4 cracks" in page.text


def test_right_and_wrong_calls_are_counted_at_the_threshold(page):
    test = inputs()["predictions"].query("split == 'test'")
    crack, called = test["label"] == "crack", test["probability"] >= DECISION["threshold"]
    n_missed, n_false = (crack & ~called).sum(), (~crack & called).sum()
    assert f"{n_missed} of {crack.sum()} missed" in page.text
    assert f"{n_false} of {(~crack).sum():,} intact images called crack" in page.text


def test_a_share_is_never_rounded_to_all_or_to_none(few):
    few["predictions"] = pd.DataFrame(
        {"dataset": "halls", "split": "test", "label": ["crack"] * 5000 + ["intact"] * 5000, "probability": 0.9}
    )
    few["predictions"].loc[[0, 9999], "probability"] = 0.0
    few["metrics"]["external"] = {}
    text = page_of(few).text
    assert "is crack 4,999 >99.9 % 1 <0.1 % is intact 4,999 >99.9 % 1 <0.1 %" in text


def test_a_set_with_one_label_has_counts_but_no_curve(page):
    assert "External: tunnel called crack called intact" in page.text
    assert "is intact 0 — 0 —" in page.text
    assert "Test External: bridges A dot marks the threshold. External: tunnel has no curve" in page.text


def test_the_page_reports_a_leak_or_that_there_is_none(page, warning_page):
    assert "Leaks 2 groups on more than one side: do not trust the scores" in warning_page.text
    assert "Leaks 0 no group is on more than one side" in page.text


def test_without_external_test_sets_the_page_says_what_is_not_known(page, warning_page):
    assert "There is no external test set, so it is not known" in warning_page.text
    assert "There is no external test set" not in page.text


def test_the_model_card_has_the_sources_not_trained_on_with_their_mean_and_the_worst(page):
    sources = inputs()["metrics"]["sources"]
    table = page.table("Sources not trained on")
    worst = sources["scores"]["bridges"]
    interval = "\N{EN DASH}".join(f"{worst['interval']['auroc'][end]:.4f}" for end in ("low", "high"))
    assert table.row("bridges")[:4] == ["500", str(worst["n_groups"]), f"{worst['auroc']:.4f}", interval]
    assert table.row("halls/Walls")[0] == "1,000"
    assert table.row("mean") == ["—", "—", *(f"{value:.4f}" for value in sources["mean"].values())]
    assert f"The worst source is bridges , with an AUROC of {worst['auroc']:.4f}" in page.text
    assert "halls/Roof was not measured: 3 cracked images." in page.text
    assert "tunnel was not measured: 100 cracked and 0 intact images" in page.text


def test_without_a_source_not_trained_on_the_model_card_says_that_other_structures_are_not_known(page, warning_page):
    words = "None was measured: it is not known how well the model does on other structures."
    assert words in warning_page.text
    assert words not in page.text


def test_missed_cracks_come_first_from_the_lowest_probability_then_false_alarms_from_the_highest(page):
    order = [image["alt"].split(": ")[1].removesuffix(" of halls") for image in page.all("img")]
    counted_down = [f"{index:05d}.jpg" for index in reversed(range(12))]
    assert order == [f"{folder}/{name}" for folder in ("Positive", "Negative") for name in counted_down]
    assert "0.0800 , label crack halls: Positive/00011.jpg" in page.text
    assert "0.5400 , label intact halls: Negative/00011.jpg" in page.text


def test_a_picture_is_shown_uncropped_in_its_colours_and_small(few):
    pixels = np.zeros((300, 1200, 3), np.uint8)
    pixels[:, :600, 0] = pixels[:, 600:, 2] = 255
    few["mistakes"] = {"Test": [Picture("a.jpg", "halls", "crack", 0.1, pixels)]}
    (shown,) = page_of(few).all("img")
    image = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
    assert image.size == (256, 64)
    np.testing.assert_allclose(image.getpixel((20, 32)), (255, 0, 0), atol=8)
    np.testing.assert_allclose(image.getpixel((236, 32)), (0, 0, 255), atol=8)


def test_the_page_stays_below_four_megabytes_with_24_mistakes_of_noise(few):
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    shown = [Picture(f"{index}.jpg", "halls", "crack", 0.1, noise, noise) for index in range(24)]
    few["mistakes"] = {"Test": shown}
    assert len(render(**few).encode()) < 4_000_000


def test_hostile_text_is_escaped(few):
    hostile = "\"><script>alert('x')</script>"
    picture = Picture(hostile, hostile, "crack", 0.1, np.zeros((8, 8, 3), np.uint8))
    few |= {
        "mistakes": {"Test": [picture]},
        "samples": {hostile: [picture]},
        "slices": few["slices"].replace({"slice": {"Decks": hostile, "3": hostile}}),
        "datasets": [replace(few["datasets"][0], name=hostile, source=hostile)],
        "weights": hostile,
    }
    few["predictions"] = few["predictions"].replace({"dataset": {"bridges": hostile}})
    few["metrics"]["external"] = {hostile: few["metrics"]["external"]["bridges"]}
    few["metrics"]["candidate"] = hostile
    few["histories"] = {hostile: inputs()["histories"]["finetune-lite0"]}
    page = page_of(few)
    assert page.all("script") == []
    assert page.text.count("<script>alert('x')</script>") >= 12


def test_every_plot_follows_the_theme_of_the_page(page):
    plots = "".join(re.findall(r"<svg.*?</svg>", page.html, re.DOTALL))
    assert "var(--text)" in plots
    assert re.findall(r"#[0-9a-f]{6}\b", plots) == []
    light, dark = (
        set(re.findall(r"(--[\w-]+):", rules)) for rules in re.findall(r":root {(.*?)}", page.html, re.DOTALL)
    )
    assert light == dark
    assert set(re.findall(r"var\((--[\w-]+)\)", page.html)) <= light


def test_each_candidate_has_a_loss_and_an_accuracy_curve_and_its_best_epoch(page):
    names = [attributes.get("aria-label") for attributes in page.all("div")]
    for name, history in inputs()["histories"].items():
        if "l2_penalty" not in history:
            assert {f"Loss of {name} by epoch", f"Accuracy of {name} by epoch"} <= set(names)
            best, n = history["val_loss"].argmin() + 1, len(history)
            assert f"{history['val_loss'].min():.4f}, after epoch {best} of {n}." in page.text


def test_a_probe_has_its_curves_by_penalty_and_names_the_best_one(page):
    names = [attributes.get("aria-label") for attributes in page.all("div")]
    assert {"Loss of probe-lite0 by penalty", "Accuracy of probe-lite0 by penalty"} <= set(names)
    history = inputs()["histories"]["probe-lite0"]
    best = history.loc[history["val_loss"].idxmin()]
    assert f"{best['val_loss']:.4f}, at an L2 penalty of {best['l2_penalty']}." in page.text


def test_each_head_of_a_probe_has_its_curves_and_its_best_penalty(few):
    l2_penalties = [0.1, 0.01, 0.001]
    heads = [
        drawn_history(np.random.default_rng(seed), 3, 0).assign(l2_penalty=l2_penalties, phase=phase)
        for seed, phase in ((1, "walls"), (2, "decks"))
    ]
    few["histories"] = {"one-head": heads[0], "two-heads": pd.concat(heads, ignore_index=True)}
    one, two = page_of(few).html.split("<h3>one-head</h3>")[1].split("<h3>two-heads</h3>")
    for head, phase in zip(heads, ("walls", "decks"), strict=True):
        best = head.loc[head["val_loss"].idxmin()]
        assert (
            f"the head for {phase} on held-out folds: {best['val_loss']:.4f}, at an L2 penalty of {best['l2_penalty']}."
            in two
        )
        assert two.count(f">{phase}</text>") == 2  # beside its line of validation, for loss and accuracy
    assert ">walls</text>" not in one


def test_the_start_of_the_second_phase_is_marked_in_both_curves(few):
    history = drawn_history(np.random.default_rng(1), 3, 4)
    few["histories"] = {"two-phases": history, "one-phase": history.assign(phase="head")}
    two, one = page_of(few).html.split("<h3>two-phases</h3>")[1].split("<h3>one-phase</h3>")
    assert two.count("<path") - one.count("<path") == 2


@pytest.mark.parametrize(("n_found", "interval"), [(0, (0.0, 0.2775)), (5, (0.2366, 0.7634)), (10, (0.7225, 1.0))])
def test_the_interval_of_a_share_is_that_of_wilson(n_found, interval):
    labels = np.where(np.arange(10) < n_found, "crack", "intact")
    table = reliability_table(pd.DataFrame({"label": labels, "probability": 0.5}))
    np.testing.assert_allclose(table[["low", "high"]], [interval], atol=5e-5)


def test_every_image_has_a_text_every_table_has_headers_and_no_id_is_used_twice(page):
    assert all(image["alt"] for image in page.all("img"))
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in page.all("div") if plot.get("class") == "plot")
    scopes = [table.count('scope="col"') for table in re.findall(r"<table.*?</table>", page.html, re.DOTALL)]
    assert min(scopes) >= 2
    assert {header.get("scope") for header in page.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [attributes["href"] for attributes in page.all("a")]
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(ids)


def test_each_slice_has_its_row_and_the_hardest_photos_are_named(page):
    table = inputs()["slices"]
    decks = table[(table["set"] == "external:bridges") & (table["slice"] == "Decks")].iloc[0]
    table_shown = page.table("Slices of External: bridges")
    assert f'<td data-label="F1">{decks["f1"]:.4f}' in table_shown.html
    assert f"{decks['f1_low']:.4f}\N{EN DASH}{decks['f1_high']:.4f}" in table_shown.row("surface Decks")
    photos = table[(table["set"] == "external:bridges") & (table["kind"] == "photo")].sort_values("balanced_f1")
    heads = re.findall(r'scope="row">(.*?)<', page.table("Photos of External: bridges").html)
    assert heads == photos.dropna(subset="balanced_f1")["slice"].head(10).tolist()


def test_a_slice_that_is_too_small_is_a_dash_and_a_page_of_such_has_no_chart(few):
    small = few["predictions"].groupby("split").head(29)
    few["slices"] = slice_table(small, Decision(**DECISION))
    page = page_of(few)
    assert "There are too few images for a chart." in page.text
    assert page.table("Slices of Test").row("all").count("—") == 8


def test_a_single_data_set_is_not_plotted_twice(few):
    alone = few["predictions"].query("dataset != 'walls'")
    given = few | {"slices": slice_table(alone, Decision(**DECISION))}
    labels = [attributes.get("aria-label") for attributes in page_of(given).all("table")]
    assert "Slices of Test" in labels
    assert "Slices of Test: halls" not in labels
    labels = [attributes.get("aria-label") for attributes in page_of(few).all("table")]
    assert {"Slices of Test: halls", "Slices of Test: walls"} <= set(labels)


def test_the_chart_names_each_slice_but_the_photos(few):
    plot = page_of(few).html.split("Balanced F1 of the slices of External: bridges")[1].split("</svg>")[0]
    names = re.findall(r">((?:all|surface|brightness|sharpness|photo)[^<]*)<", plot)
    table = few["slices"]
    brightness = table[(table["set"] == "external:bridges") & (table["kind"] == "brightness")]["slice"]
    assert names[:3] == ["all", "surface Decks", "surface Walls"]
    assert names[3:7] == [f"brightness {value}" for value in brightness]
    assert not [name for name in names if name.startswith("photo")]


def test_both_splits_are_side_by_side_and_images_left_out_are_reported(page, few):
    assert page.row("leak-free split") == ["25.0", "5", "of", "200", "0.9710", "0"]
    assert page.row("random split") == ["5.0", "1", "of", "200", "0.9930", "36.5", "%"]
    assert "73 of 200 validation images, on which it is scored, have a copy" in page.text
    assert "randomly chosen whole groups" not in page.text
    assert "The random split does not give better scores here" not in page.text
    few["metrics"]["leakage"] |= {"random_n_errors": 5}
    assert "The random split does not give better scores here" in page_of(few).text
    few["metrics"]["leakage"] |= {"n_images": 900, "n_scored_with_copy_in_train": 0}
    text = page_of(few).text
    assert "Of 1,000 images, 900 in randomly chosen whole groups were used" in text
    assert "Nothing leaks in the random split" in text


def test_the_card_names_what_was_trained_on_and_what_the_model_must_not_do(page, warning_page):
    assert "halls, trained on: source of halls." in page.text
    assert "bridges, not trained on: source of bridges." in page.text
    assert "An image called intact may still show a crack." in page.text
    assert "Initial weights: of the start." in page.text
    assert "doi" not in page.text
    external = inputs()["predictions"].query("dataset == 'bridges' and label == 'crack'")
    n_missed = (external["probability"] < DECISION["threshold"]).sum()
    assert f"On bridges it missed {n_missed} of {len(external)} cracks" in page.text
    assert "It was not tested on an external test set." in warning_page.text
    assert "It was not tested on an external test set." not in page.text


def test_the_card_states_what_is_missed_with_review_on_each_set_and_surface(page):
    table = inputs()["slices"]
    shown = page.table("Cracks missed with review")
    for name, kind, of_set in (
        ("External: bridges", "all", "all"),
        ("External: bridges, surface Decks", "surface", "Decks"),
    ):
        row = table[(table["set"] == "external:bridges") & (table["kind"] == kind) & (table["slice"] == of_set)].iloc[0]
        text = shown.html.split(f'scope="row">{name}<')[1].split("</tr>")[0]
        assert f'<td data-label="cracks missed, review counted as right">{row["missed_with_review"]:.4f}' in text
        assert f'<td data-label="for review">{row["review_share"]:.4f}' in text
        assert kind == "surface" or f"{row['missed_with_review_low']:.4f}" in text  # no crack of the decks is missed
    external = inputs()["predictions"].query("dataset == 'bridges' and label == 'crack'")
    row = table[(table["set"] == "external:bridges") & (table["kind"] == "all")].iloc[0]
    assert row["missed_with_review"] == pytest.approx((external["probability"] < DECISION["review_from"]).mean())


def test_the_card_states_the_share_of_cracks_that_probabilities_assume(few):
    assert "Probabilities assume the share of cracks in the validation images" in page_of(few).text
    few["metrics"]["decision"] = DECISION | {"prevalence": 0.12}
    assert "Probabilities assume that 12 % of the images are cracks" in page_of(few).text


def test_each_data_set_has_its_row_of_counts(page):
    assert page.row("halls") == ["trained", "on", "10", "50.0", "%", "4", "7", "0", "2", "0", "1", "3"]
    bridges = page.table("Data sets").row("bridges")
    assert bridges == ["external", "test", "set", "8", "62.5", "%", "4", "0", "0", "0", "8", "0", "3"]


def test_validation_photos_of_an_external_test_set_are_reported(page, few):
    assert "are held out for validation: the model was not trained on them" not in page.text
    with_validation = facts("bridges", is_trained_on=False, external=8, validation=1234)
    few["datasets"] = [with_validation]
    assert "1,234 images of the external test set bridges are held out for validation" in page_of(few).text


def test_random_predictions_are_framed_by_whether_they_are_right(few):
    rng = np.random.default_rng(0)
    shown = [drawn_picture(rng, f"{label}-{p}.jpg", label, p) for label, p in (("crack", 0.31), ("intact", 0.31))]
    few["samples"] = {"halls": shown, "walls": shown[:1]}
    page = page_of(few)
    right, wrong = re.findall(r'<ul class="pictures framed are-(right|wrong)">(.*?)</ul>', page.html, re.DOTALL)[:2]
    assert (right[0], "crack-0.31.jpg" in right[1], "intact-0.31.jpg" in right[1]) == ("right", True, False)
    assert (wrong[0], "crack-0.31.jpg" in wrong[1], "intact-0.31.jpg" in wrong[1]) == ("wrong", False, True)
    assert page.text.count("None is wrong.") == 1


def test_mistakes_on_external_test_sets_have_their_own_gallery_with_maps(few):
    pixels = np.zeros((8, 8, 3), np.uint8)
    mistakes = {"Test": [], "External: bridges": [Picture("a.jpg", "bridges", "intact", 0.9, pixels, pixels)]}
    few["mistakes"] = mistakes
    page = page_of(few)
    assert [image["alt"] for image in page.all("img")] == [
        "False alarm: a.jpg of bridges",
        "Occlusion map of a.jpg of bridges",
    ]
    assert "Test: missed cracks None. Test: false alarms None. External: bridges: missed cracks None." in page.text


def test_the_layers_of_the_network_are_in_tables_and_those_of_the_backbone_folded(page):
    assert "image Layer any x any x 3 0 lite0 Layer 1280 3,400,000" in page.text
    assert (
        "All 1 layers of lite0, the pre-trained backbone layer type output weights <stem> Layer 8 x 8 x 4 0"
        in page.text
    )
