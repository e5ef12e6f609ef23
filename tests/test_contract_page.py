import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from page_reader import Page
from PIL import Image

from pipeline.data.contract import Rule
from pipeline.data.contract_page import CaptionedImage, CopyGroup, _histogram, render_contract

BROKEN = Rule(
    "no side is shorter than 64 px", "fail", False, "12 images", tuple(f"Positive/{n}.jpg" for n in range(10))
)
UNREADABLE = Rule("every file can be read", "fail", False, "3 files")
DARK = Rule("no image is nearly black", "warn", False, "2 images", ("Negative/7.jpg",))
BLURRED = Rule("no image is blurred", "warn", True, "0 images")
BALANCED = Rule("the rarer label makes up at least 5.0 %", "fail", True, "48.1 %")
HOSTILE = "\"><script>alert('x')</script>\n\u202egpj.exe\udcff" + "x" * 4000 + "/end.jpg"
NO_QUARANTINE = pd.DataFrame({"batch": [], "path": [], "reason": []})


def tile(path="Positive/1.jpg", label="crack", caption="identical", size=(24, 24), name=""):
    return CaptionedImage(path, label, caption, np.full((*size, 3), 128, np.uint8), name)


def group(labels, n_images=None):
    tiles = tuple(tile(f"{label}/{number}.jpg", label, name=f"{number:016x}") for number, label in enumerate(labels))
    return CopyGroup(tiles, n_images or len(tiles), len(set(labels)) > 1, ((tiles[0].id, tiles[-1].id),))


def drawn_inventory(n_crack=40, n_intact=60):
    rng = np.random.default_rng(3)
    n = n_crack + n_intact
    return pd.DataFrame(
        {
            "path": [f"{number}.jpg" for number in range(n)],
            "label": ["crack"] * n_crack + ["intact"] * n_intact,
            "brightness": rng.normal(150, 20, n),
            "contrast": rng.gamma(4, 4, n),
            "sharpness": rng.lognormal(4, 1, n),
            "width": 227,
            "height": 227,
        }
    )


def page_of(**changes):
    """A page without plots, which take most of the time, unless an inventory is given."""
    given = {
        "name": "metu",
        "is_drawn": False,
        "facts": {"Images": "12,780", "Leak of a random split": "24 % of test have a copy in training"},
        "rules": [BALANCED, DARK, BLURRED, BROKEN],
        "violations": {},
        "copy_groups": [],
        "n_copy_groups": 0,
        "quarantine": NO_QUARANTINE,
        "inventory": drawn_inventory(0, 0),
    }
    return Page(render_contract(**given | changes))


@pytest.fixture(scope="module")
def page():
    """A page with something in every section."""
    return page_of(
        violations={rule.text: [tile(path) for path in rule.paths] for rule in (BROKEN, DARK)},
        copy_groups=[group(["crack", "intact"]), group(["crack"] * 3)],
        n_copy_groups=2,
        quarantine=pd.DataFrame({"batch": ["first"], "path": ["Thumbs.db"], "reason": ["not an image"]}),
        inventory=drawn_inventory(),
    )


def plots_of(page):
    return re.findall(r"<svg.*?</svg>", page.html, re.DOTALL)


def groups_of(page):
    return [Page(html) for html in re.findall(r"<article.*?</article>", page.html, re.DOTALL)]


def test_the_page_loads_nothing_and_has_no_scripts(page):
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"""\w+://[^\s"'<>)]*""", page.html)) == namespaces
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert page.all("meta")[1]["content"].startswith("default-src 'none'")


def test_equal_inputs_give_equal_pages():
    first, second = (page_of(inventory=drawn_inventory(), copy_groups=[group(["crack"] * 2)]).html for _ in range(2))
    assert first == second


def test_the_page_names_its_data_set_and_warns_only_of_drawn_images():
    assert "<title>Data set metu</title>" in page_of().html
    assert "Demo" not in page_of().text
    assert "Demo: drawn images. These numbers say nothing about real concrete." in page_of(is_drawn=True).text


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ([BALANCED, BLURRED], "✓ Passed: every rule is met The data set meets all 2 rules"),
        (
            [BALANCED, DARK],
            f"! Passed with 1 warning The pipeline continues. A person should check: {DARK.text}",
        ),
        (
            [DARK, BROKEN, UNREADABLE],
            "✕ Failed: this data set stops the pipeline It breaks 2 rules of its contract. Nothing is trained on it "
            "until the data is corrected or contract in params.yaml is changed. "
            f"{BROKEN.text} . Found: 12 images {UNREADABLE.text} . Found: 3 files 1 warning, which",
        ),
    ],
    ids=["passed", "warnings", "failed"],
)
def test_the_result_is_stated_in_words(rules, verdict):
    assert verdict in page_of(rules=rules).text


def test_the_headline_figures_are_there():
    text = page_of().text
    assert "Images 12,780 Leak of a random split 24 % of test have a copy in training" in text


def test_broken_rules_come_first_then_warnings_then_those_that_are_met(page):
    rows = [row for row in re.findall(r"<tr>.*?</tr>", page.html, re.DOTALL) if "badge" in row]
    assert [Page(row).text for row in rows] == [
        f"✕ failed {BROKEN.text} 12 images stops the pipeline",
        f"! warning {DARK.text} 2 images warns",
        f"✓ passed {BALANCED.text} 48.1 % stops the pipeline",
        f"✓ passed {BLURRED.text} 0 images warns",
    ]


def test_under_a_rule_are_the_files_that_break_it(page):
    (of_broken, of_dark) = re.findall(r'<tr class="files">.*?</tr>', page.html, re.DOTALL)
    assert Page(of_broken).words == list(BROKEN.paths)
    assert Page(of_dark).words == list(DARK.paths)


def test_pictures_show_what_breaks_the_rules_and_none_of_a_rule_that_is_met():
    violations = {rule.text: [tile(f"{rule.severity}.jpg")] for rule in (DARK, BROKEN)} | {
        BLURRED.text: [tile("met.jpg")]
    }
    page = page_of(violations=violations)
    assert [image["alt"] for image in page.all("img")] == ["crack: fail.jpg", "crack: warn.jpg"]
    assert (
        f"✕ failed {BROKEN.text} crack identical fail.jpg ! warning {DARK.text} crack identical warn.jpg" in page.text
    )


def test_without_pictures_of_broken_rules_their_section_is_left_out(page):
    assert "Images that break rules" in page.text
    assert "Images that break" not in page_of(violations={BROKEN.text: []}).text


def test_groups_whose_labels_disagree_are_marked(page):
    conflict, calm = groups_of(page)
    assert conflict.all("article")[0]["class"] == "group conflict"
    first, second = "crack identical crack/0.jpg 0000000000000000", "intact identical intact/1.jpg 0000000000000001"
    assert conflict.text == f"✕ Labels disagree: 2 images {first} {second}"
    assert calm.all("article")[0]["class"] == "group"
    assert calm.text.startswith("crack 3 images identical crack/0.jpg")
    assert "In 1 group the labels disagree: correct these." in page.text
    assert "disagree" not in page_of(copy_groups=[group(["crack"] * 2)], n_copy_groups=1).text


def test_doubtful_pairs_are_shown_with_what_to_write_if_they_are_no_copies():
    page = page_of(doubtful=[group(["crack", "intact"]), group(["crack", "crack"])], n_doubtful=40)
    assert "40 pairs, 2 of them shown, of images that may be copies" in page.text
    assert 'split: copies: not_copies: - ["0000000000000000", "0000000000000001"] - ["' in page.text
    assert [one.text.split(" crack")[0] for one in groups_of(page)] == ["Different labels", "Same label"]
    assert "Doubtful" not in page_of().text


def test_images_and_groups_that_are_not_shown_are_counted():
    page = page_of(copy_groups=[group(["crack", "intact"] * 4, 23)], n_copy_groups=40)
    (conflict,) = groups_of(page)
    assert "23 images, 8 of them shown" in conflict.text
    assert len(conflict.all("img")) == 8
    assert "40 groups, 1 of them shown." in page.text


def test_empty_sections_say_that_there_is_nothing():
    text = page_of().text
    assert "No image is a copy of another." in text
    assert "No file is in quarantine." in text
    assert "There are no images." in text


def test_copies_and_quarantine_that_were_not_looked_at_are_not_said_to_be_none():
    text = page_of(n_copy_groups=None, quarantine=None).text
    assert "Copies" not in text
    assert "Quarantine" not in text


def test_copies_that_are_not_shown_are_counted():
    assert "Images that are copies of each other: 7 groups, 0 of them shown." in page_of(n_copy_groups=7).text


@pytest.mark.parametrize(("n", "more"), [(100, None), (1234, "and 1,134 more")])
def test_a_hundred_files_in_quarantine_are_listed_and_the_others_are_counted(n, more):
    files = pd.DataFrame({"batch": 2, "path": [f"{number}.txt" for number in range(n)], "reason": "not an image"})
    page = page_of(quarantine=files)
    assert page.html.count("not an image") == 100
    assert page.row("99.txt") == ["2", "not", "an", "image"]
    assert re.findall(r"and [\d,]+ more", page.text) == ([more] if more else [])


def test_each_quantity_has_a_plot_and_the_median_of_each_label(page):
    medians = drawn_inventory().groupby("label").median(numeric_only=True)
    for quantity in ("brightness", "contrast", "sharpness"):
        crack, intact = medians[quantity]
        unit = "" if quantity == "sharpness" else " grey levels"
        assert f"Median: crack {crack:.1f}, intact {intact:.1f}{unit}" in page.text
    assert len(plots_of(page)) == 3


def test_a_plot_compares_shares_so_that_a_rare_label_is_seen():
    few = drawn_inventory()
    many = pd.concat([few, few.query("label == 'crack'")])
    assert _histogram(few["label"], few["contrast"], "contrast") == _histogram(
        many["label"], many["contrast"], "contrast"
    )


@pytest.mark.parametrize("values", [[0.0, 0.0], [127.0, np.nextafter(127.0, 128.0)], [0.0, 1e5]])
@pytest.mark.parametrize("quantity", ["brightness", "sharpness"])
def test_images_of_one_colour_and_images_that_look_alike_are_drawn_too(quantity, values):
    assert "<path" in _histogram(pd.Series(["intact", "intact"]), pd.Series(values), quantity)


@pytest.mark.parametrize("n", [100, 700, 3000])
def test_the_ticks_of_a_plot_state_the_shares_at_which_they_stand(n):
    plot = _histogram(pd.Series(["crack"] * n), pd.Series(np.linspace(0, 200, n)), "brightness")
    ticks = np.array(re.findall(r'y="([\d.]+)"[^>]*>([\d.]+)\N{NO-BREAK SPACE}%<', plot), float)
    line = np.polyfit(ticks[:, 0], ticks[:, 1], 1)
    assert len(ticks) > 2
    np.testing.assert_allclose(np.polyval(line, ticks[:, 0]), ticks[:, 1], atol=1e-3)


def test_large_values_have_marks_of_thousands():
    plot = _histogram(pd.Series(["crack"] * 2), pd.Series([5e4, 5e6]), "sharpness")
    assert re.findall(r">([\d,.e+]+)<", plot) == ["100,000", "300,000", "1,000,000", "3,000,000"]
    plot = _histogram(pd.Series(["crack"] * 2), pd.Series([127.0, 127.002]), "brightness")
    assert re.findall(r">(\+[\d.e+]+)<", plot) == []


def test_a_label_without_images_is_left_out_of_the_plots():
    text = page_of(inventory=drawn_inventory(n_crack=0)).text
    assert "Median: intact" in text
    assert "Median: crack" not in text


def test_sizes_are_counted_by_label_the_most_frequent_first():
    sizes = [(227, 227)] * 2 + [(640, 480)] * 3 + [(100 + n, 100) for n in range(9)]
    inventory = drawn_inventory(4, len(sizes) - 4).assign(
        width=[width for width, _ in sizes], height=[height for _, height in sizes]
    )
    page = page_of(inventory=inventory)
    shown = re.findall(r"(\d+) \W (\d+) (\d+) (\d+)(?= |$)", page.text.partition("Sizes")[2])
    assert shown[:3] == [("640", "480", "2", "1"), ("227", "227", "2", "0"), ("100", "100", "0", "1")]
    assert len(shown) == 10
    assert page.text.endswith("and 1 rarer size")


def page_that_says(text):
    """A page with the same text in every place that takes one."""
    storable = text.replace("\udcff", "")  # as a table has it
    return page_of(
        name=text,
        facts={text: text},
        rules=[Rule(text, "fail", False, text, (text,)), Rule(text + "!", "warn", False, text)],
        violations={text: [tile(text, caption=text)]},
        copy_groups=[CopyGroup((tile(text, caption=text),), 2, True)],
        n_copy_groups=1,
        quarantine=pd.DataFrame({"batch": [storable], "path": [storable], "reason": [storable]}),
    )


def test_hostile_text_is_escaped_and_shortened_to_one_line():
    page = page_that_says(HOSTILE)
    assert page.all("script") == []
    assert "\u202e" not in page.html
    assert "x" * 200 not in page.html
    assert len(page.html.encode()) < 50_000
    n_places = page_that_says("harmless").text.count("harmless")
    for part in ("\"><script>alert('x')</script>\\n\\u202egpj.exe", "xxx/end.jpg"):
        assert page.text.count(part) == n_places


def test_a_picture_is_shown_uncropped_in_its_colours_and_small():
    pixels = np.zeros((300, 1200, 3), np.uint8)
    pixels[:, :600, 0] = pixels[:, 600:, 2] = 255
    (shown,) = page_of(violations={BROKEN.text: [CaptionedImage("a.jpg", "crack", "", pixels)]}).all("img")
    image = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
    assert image.size == (160, 40)
    np.testing.assert_allclose(image.getpixel((20, 20)), (255, 0, 0), atol=8)
    np.testing.assert_allclose(image.getpixel((140, 20)), (0, 0, 255), atol=8)


def test_the_page_stays_below_three_megabytes_with_200_pictures_of_rough_concrete():
    noise = np.random.default_rng(3).normal(150, 25, (227, 227, 1)).repeat(3, axis=2).clip(0, 255).astype(np.uint8)
    rough = [CaptionedImage(f"{number}.jpg", "crack", "", noise) for number in range(200)]
    assert len(page_of(violations={BROKEN.text: rough}).html) < 3_000_000


def test_every_plot_follows_the_theme_of_the_page(page):
    plots = "".join(plots_of(page))
    assert "var(--series-0)" in plots
    assert re.findall(r"#[0-9a-f]{6}\b", plots) == []
    light, dark = (
        set(re.findall(r"(--[\w-]+):", rules)) for rules in re.findall(r":root {(.*?)}", page.html, re.DOTALL)
    )
    assert light == dark
    assert set(re.findall(r"var\((--[\w-]+)\)", page.html)) <= light | {"--state"}


def test_every_image_has_a_text_every_table_has_headers_and_every_link_leads_somewhere(page):
    assert all(image["alt"] for image in page.all("img"))
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in page.all("div") if plot.get("class") == "plot")
    scopes = [table.count('scope="col"') for table in re.findall(r"<table.*?</table>", page.html, re.DOTALL)]
    assert scopes == [4, 3, 3]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {anchor["href"].removeprefix("#") for anchor in page.all("a")} <= set(ids)
