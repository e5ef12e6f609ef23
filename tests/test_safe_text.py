"""Names of files in logs, on pages and in tables."""

import io
import logging

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.safe_text import cell, cells, printable, text_of_cell
from pipeline.stage import PrintableFormatter

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-1"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("deck 1.jpg", "deck 1.jpg"),
        ("Größe 写真.jpg", "Größe 写真.jpg"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("a\x1b[2Kb\nc", r"a\x1b[2Kb\nc"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(text):
    assert cell(text) == "'" + text


@given(st.text(alphabet=st.sampled_from("'=+-@\t\ra,\"\n")))
def test_a_cell_gives_back_its_text(text):
    assert text_of_cell(cell(text)) == text


def test_a_table_for_people_has_no_formula_and_keeps_its_numbers():
    table = pd.DataFrame({"photo": ["=cmd()", "b\u202e.jpg"], "share": [-0.5, None], "note": [None, "fine"]})
    written = cells(table).to_csv(index=False)
    read = pd.read_csv(io.StringIO(written))
    assert read["photo"].tolist() == ["'=cmd()", r"b\u202e.jpg"]
    assert read["share"][0] == -0.5
    assert read[["share", "note"]].isna().to_numpy().tolist() == [[False, True], [True, False]]


def test_a_log_line_shows_what_is_hidden_in_a_name():
    record = logging.LogRecord("a", logging.INFO, "", 0, "not mapped: %s\nnext", ("a\x1b[2K\u202eb",), None)
    assert PrintableFormatter().format(record) == "not mapped: a\\x1b[2K\\u202eb\nnext"
